mgmrn() { @PROGRAM@ "$@"; }
_mgmrn_completion() {
    eval "$(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" @VARIABLE@=complete_zsh @PROGRAM@ 2> /dev/null)"
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
compdef _mgmrn_completion mgmrn
