"""Isocenter inside a Python program: draw slices, ask about all of them, print a small table.

Run from the repository root: `python examples/embedding.py`.
"""

from isocenter import IsocenterError, SyncService
from isocenter.imaging.phantoms import brain_slice

SLICES = [brain_slice(3_000_000 + number) for number in range(8)]


def main() -> None:
    """Answer eight slices and a file that is none, then show what was measured."""
    pictures = [each.pixels for each in SLICES]
    with SyncService("models") as service:
        answers = service.infer_many([*pictures, b"not a picture"], threshold=0.9)
        metrics = service.get_metrics()

    print(f"{'drawn':<12}{'answered':<12}{'confidence':>10}  at least 0.9")
    for drawn, answer in zip([*(each.label for each in SLICES), "-"], answers, strict=True):
        if isinstance(answer, IsocenterError):
            print(f"{drawn:<12}refused: {answer.code}")
        else:
            sure = ", ".join(map(str, answer.labels or ())) or "none"
            print(f"{drawn:<12}{answer.label:<12}{answer.confidence:>10.4f}  {sure}")
    for name, found in metrics.items():
        took = found["latency_ms"]
        if not took["count"]:
            continue
        print(f"{name}: p50 {took['p50']:.1f} ms, p95 {took['p95']:.1f} ms (n={took['count']})")


if __name__ == "__main__":
    main()
