"""The section of ``calibration``: the reliability diagram and the table of metrics."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from backlight.report.sections.section import Chart, Metrics, Results, Section
from backlight.report.words import interval
from backlight.results.charts import CHARTS
from backlight.results.result import Result, Row

#: Metric -> its name, its unit and definition, and the factor from the stored to the shown unit.
METRICS = {
    "accuracy": ("Accuracy", "%", 100),
    "top5": ("Top-5 accuracy", "%; the label is among the five most probable classes", 100),
    "nll": ("NLL", "nats; negative log-likelihood of the label, smaller is better", 1),
    "brier": ("Brier score", "0 to 2; squared distance from the label, smaller is better", 1),
    "ece": ("ECE", "%; mean gap between confidence and accuracy", 100),
    "ece_debiased": ("ECE, debiased", "%; ECE less what the noise of few images adds", 100),
    "signed_ece": ("Signed ECE", "points; confidence minus accuracy, negative is under-confident", 100),
    "adaptive_ece": ("Adaptive ECE", "%; the same gap, in bins with equally many images", 100),
    "acc_90": ("Acc-90", "%; accuracy where confidence exceeds 0.9", 100),
    "freq_90": ("Freq-90", "%; share of images with confidence above 0.9", 100),
    "unc_90": ("Unc-90", "%; share of wrong predictions with confidence of at most 0.9", 100),
    "iou": ("Mean IoU", "%; intersection over union of labels and predictions, mean over classes", 100),
    "iou_90": ("IoU-90", "%; the same for images with confidence above 0.9", 100),
    "temperature": (
        "Temperature",
        "divisor of the logits with the smallest NLL, fitted on other images; below 1 is under-confident",
        1,
    ),
    "nll_unscaled": ("NLL before scaling", "nats; on images that the temperature was not fitted on", 1),
    "nll_scaled": ("NLL after scaling", "nats; on the same images", 1),
    "nll_scaled_change": ("Change of NLL", "nats; after minus before", 1),
    "ece_unscaled": ("ECE before scaling", "%; on images that the temperature was not fitted on", 100),
    "ece_scaled": ("ECE after scaling", "%; on the same images", 100),
    "ece_scaled_change": ("Change of ECE", "points; after minus before", 100),
}
#: The end of the names of metrics among the outputs that are classes of the data.
RESTRICTED = "_restricted"
#: Metrics that the table on the page omits.
OMITTED = {f"{m}_{when}" for m in ("brier", "signed_ece", "adaptive_ece") for when in ("unscaled", "scaled", "scaled_change")}


def figures(results: Results) -> list[list[Chart]]:
    """One reliability diagram for all models, and one after temperature scaling in a second tab."""
    summaries = [f"{r.model}: ECE {100 * _metric(r, 'ece')['value']:.1f}%." for r in results if r is not None]
    alt = f"Accuracy against confidence, one line per model; a calibrated model is on the diagonal. {' '.join(summaries)}"
    plain = Chart(
        "reliability", "calibration/reliability", CHARTS["calibration/reliability"].y, alt, name="calibration/reliability"
    )
    if not any("reliability_scaled" in r.arrays for r in results if r is not None):
        return [[plain]]
    summaries = [f"{r.model}: T {_metric(r, 'temperature')['value']:.2f}." for r in results if r is not None]
    alt = f"The same after temperature scaling, on images that the temperature was not fitted on. {' '.join(summaries)}"
    scaled = Chart(
        "reliability",
        "calibration/scaled",
        CHARTS["calibration/scaled"].y,
        alt,
        tab="After temperature scaling",
        name="calibration/scaled",
    )
    return [[replace(plain, tab="As trained"), scaled]]


def metrics(results: Results) -> Metrics:
    """Every metric, one column per model."""
    measured = {row["metric"] for result in results if result is not None for row in result.table} - OMITTED
    names = [name for name in [*METRICS, *sorted(measured - set(METRICS))] if name in measured]
    shown = {name: _described(name) for name in names}
    rows = [(title, text, [_cell(r, name, scale) for r in results]) for name, (title, text, scale) in shown.items()]
    return Metrics("Metrics with 95% intervals over images", rows)


def _described(name: str) -> tuple[str, str, float]:
    """The name, the unit and definition, and the factor of a metric."""
    metric = name.removesuffix(RESTRICTED)
    title, text, scale = METRICS.get(metric, (metric, "", 1))
    return (title, text, scale) if metric == name else (f"{title}, restricted", f"{text}; among the data's classes", scale)


def _metric(result: Result, name: str) -> Row:
    missing = {"value": float("nan"), "low": float("nan"), "high": float("nan")}
    return next((row for row in result.table if row["metric"] == name), missing)


def _cell(result: Result | None, name: str, scale: float) -> str:
    if result is None:
        return "–"
    row = _metric(result, name)
    return interval(row["value"], row["low"], row["high"], scale=scale)


def reliability(result: Result, array: str = "reliability") -> list[Row]:
    """One row per bin that contains images.  Shapes: (value, low, high) x (confidence, accuracy, share) x bins -> rows."""
    if array not in result.arrays:
        return []
    diagram = result.arrays[array]
    bins = diagram.shape[2]
    return [
        {"from": k / bins, "to": (k + 1) / bins, "confidence": diagram[0, 0, k], "share": diagram[0, 2, k]}
        | {"accuracy": diagram[0, 1, k], "accuracy_low": diagram[1, 1, k], "accuracy_high": diagram[2, 1, k]}
        for k in range(bins)
        if diagram[0, 2, k] > 0
    ]


SECTION = Section(
    title="Calibration",
    reading=(
        "Images are binned by the model's confidence; each mark is the accuracy in a bin, and a larger mark is a bin with "
        "more images. "
        "On the diagonal accuracy equals confidence; below it the model is over-confident, above it under-confident."
    ),
    needs=("metric", "value", "low", "high", "reliability"),
    figures=figures,
    metrics=metrics,
    derived={"calibration/reliability": reliability, "calibration/scaled": partial(reliability, array="reliability_scaled")},
)
