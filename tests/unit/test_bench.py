"""What benchmarks report, on sizes at which they say nothing about speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgmrn.errors import UserError
from pipeline.bench import record, reference
from pipeline.bench.kernels import OTHER, PRODUCTS, Kernel, by_kind, kind_of
from pipeline.bench.machine import ProbeSize
from pipeline.bench.peak_memory import PeakMemory
from pipeline.bench.report import BenchReport, in_turn, rounds_ratio, spread
from pipeline.bench.scoring import draw_predicted, scored, scored_plainly
from pipeline.bench.step_variants import ON_GPU, StepSize, config_of, make_step
from pipeline.tracking.environment import GitState

TINY = StepSize(images=32, batch=2, width=32, backbone="resnet18")
CPU = torch.device("cpu")
PROBES = ProbeSize(matrix=8, channels=4, side=4, copied=64)


@pytest.fixture(scope="module")
def report() -> BenchReport:
    from pipeline.bench import made_step, step

    with pytest.MonkeyPatch.context() as patch:
        # Its own processes take seconds each to load torch.
        patch.setattr(
            made_step, "measure_peak", lambda name, size: PeakMemory(1.0, 4.0 if name == "reference" else 2.0)
        )
        return step.measure_steps(("reference", "joint"), TINY, CPU, 2, PROBES)


def test_a_step_is_compared_with_the_reference_round_by_round(report: BenchReport) -> None:
    by_name = {timing.name: timing for timing in report.results}
    ratio = by_name["joint / reference, images/s"]
    assert ratio.unit == "×" and ratio.n == 2 and 0 < ratio.min <= ratio.median <= ratio.max
    assert report.ratios["joint / reference, images/s"] == ratio.median
    assert report.ratios["joint / reference, peak memory"] == 0.5
    assert by_name["joint: images"].median == pytest.approx(2 / by_name["joint: step"].median, rel=0.5)
    assert any("resnet18 at 32², batch 2" in note for note in report.notes)


def test_the_shares_of_the_peak_are_those_of_its_best_probe(report: BenchReport) -> None:
    by_name = {timing.name: timing.median for timing in report.results}
    peak = max(by_name["the machine: matmul float32"], by_name["the machine: conv float32"])
    assert by_name["joint: share of peak"] == pytest.approx(100 * by_name["joint: achieved"] / peak)


def test_three_passes_cost_more_operations_than_one(report: BenchReport) -> None:
    counted = {note.split(":")[0]: float(note.split()[1]) for note in report.notes if "TFLOP" in note}
    assert 1.3 < counted["reference"] / counted["joint"] < 3


@pytest.mark.parametrize("variant", [name for name in ON_GPU if not name.startswith("reference")])
def test_variants_of_ours_are_whole_networks_finetuned(variant: str) -> None:
    config = config_of(variant, TINY)
    assert config.model.backbone.trainable == "all" and config.model.backbone.name == "resnet18"
    assert config.model.levels == ("c3", "c4", "c5")
    assert config.schedule.order == ("sequential" if variant == "sequential" else "joint")
    assert config.schedule.compile == variant.endswith("compiled")


@pytest.mark.parametrize(
    "kind, name",
    [
        (PRODUCTS, "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_cudnn"),
        (PRODUCTS, "nvjet_sm90_tst_64x64_64x13_1x2_h_bz_splitK_NTT"),
        (PRODUCTS, "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64_32x4_nhwc_align8>"),
        (PRODUCTS, "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>"),
        ("fused by the compiler", "triton_poi_fused__to_copy_add_convolution_mul_relu_rsqrt_sub_33"),
        ("batch norm", "void at::native::batch_norm_collect_statistics_channels_last_kernel<at::native::Var, c10::BFloat16>"),
        ("optimiser and clipping", "void at::native::multi_tensor_apply_kernel<at::native::FusedOptimizerTensorListMetadata<4>>"),
        ("another layout", "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>"),
        ("copies and other types", "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>"),
        ("bilinear reduction", "void at::native::upsample_bilinear2d_out_frame<float, float>"),
        ("sums and softmax", "void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16>>"),
        ("element by element", "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>>"),
        (OTHER, "void at::native::max_pool_backward_nhwc<c10::BFloat16, float>"),
    ],
)  # fmt: skip
def test_kernels_are_told_apart_by_their_names(kind: str, name: str) -> None:
    assert kind_of(name) == kind


def test_the_kinds_of_kernels_add_up_to_a_step_longest_first() -> None:
    kernels = [Kernel("triton_a", 2.0), Kernel("nvjet_b", 3.0), Kernel("triton_c", 1.0), Kernel("nvjet_b", 5.0)]
    products, fused = by_kind(kernels, steps=2)
    assert (products.kind, products.seconds, products.kernels) == (PRODUCTS, 4.0, 1.0)
    assert (fused.seconds, fused.kernels) == (1.5, 1.0)


def test_an_unknown_variant_is_a_sentence() -> None:
    with pytest.raises(UserError, match="there is no variant 'fast'"):
        make_step("fast", TINY, CPU)


def test_without_its_tests_a_checkout_says_that_the_reference_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="no ratio to it can be measured"):
        make_step("reference", TINY, CPU)


def test_a_ratio_is_that_of_the_same_round() -> None:
    ratio = rounds_ratio("a / b", [2.0, 20.0, 2.0], [1.0, 10.0, 0.5])
    assert (ratio.median, ratio.min, ratio.max) == (2.0, 2.0, 4.0)


def test_both_ways_of_scoring_give_the_same_scores() -> None:
    predicted = draw_predicted(images=100, classes=7, attributes=5)
    scores, plain = scored(predicted, 20.0), scored_plainly(predicted, 20.0)
    assert scores.shape == (100, 7) and scores.std() > 1
    torch.testing.assert_close(scores, plain, rtol=1e-5, atol=1e-5)


def test_works_take_turns() -> None:
    order: list[str] = []
    seconds = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b", "a", "b"] and {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2}


def test_a_report_is_appended_and_the_rest_stays(tmp_path: Path) -> None:
    file = tmp_path / "benchmarks.md"
    file.write_text("# Benchmarks\n\nOld.\n")
    made = BenchReport("eval", {"python": "3.11"}, (spread("a", [1.0, 2.0, 3.0], "s"),), {"a / b": 2.0}, ("Note.",))
    record.append(made, "python -m pipeline bench eval --record", file)
    record.append(made, "python -m pipeline bench eval --record", file)
    text = file.read_text()
    assert text.startswith("# Benchmarks\n\nOld.\n\n## `eval` (")
    assert text.count("python -m pipeline bench eval --record") == 2
    assert "| a | 2 | 1 | 3 | s | 3 |" in text and "- a / b: **2**" in text and "Note." in text


def test_figures_are_recorded_in_a_checkout_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file to record figures in"):
        record.append(BenchReport("eval", {}, (), {}), "command", tmp_path / "absent.md")


def test_the_parts_of_the_forward_pass_stand_beside_their_bounds(report: BenchReport) -> None:
    (table,) = report.tables
    assert "`joint`" in table.title
    names = [row[0] for row in table.rows]
    assert names[0] == "backbone" and "MRM" in names
    assert {row[4] for row in table.rows} <= {"arithmetic", "memory"}
    written = record.section(report, "python -m pipeline bench step")
    assert "| part | time |" in written and written.count("| backbone |") == 1


def test_what_is_being_written_is_no_change_of_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n")
    seen: list[list[str]] = []

    def look() -> GitState:
        seen.append([path.name for path in tmp_path.iterdir()])
        return GitState("0123456789", False, "", ())

    monkeypatch.setattr("pipeline.bench.record.git_state", look)
    record.append(BenchReport("eval", {}, (), {}), "python -m pipeline bench eval --record", page)
    assert seen == [["benchmarks.md"]]
    assert "Commit 0123456;" in page.read_text()
