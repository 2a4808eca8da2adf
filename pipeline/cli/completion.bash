mgmrn() { @PROGRAM@ "$@"; }
_mgmrn_completion() {
    local IFS=$'\n'
    COMPREPLY=($(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" @VARIABLE@=complete_bash @PROGRAM@ 2> /dev/null))
}
complete -o default -F _mgmrn_completion mgmrn
