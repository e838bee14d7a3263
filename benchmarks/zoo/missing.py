"""What of torchvision and timm has no record in docs/coverage.json.

python -m benchmarks.zoo.missing

Every classifier, segmentation network and detector's backbone of torchvision, and one network at
least of every family (module of ``timm.models``) of timm.
"""

from __future__ import annotations

from collections.abc import Collection

import timm
import torchvision

from benchmarks.zoo.run import DOCS, load

KINDS = {
    "torchvision": torchvision.models,
    "segmentation": torchvision.models.segmentation,
    "backbone": torchvision.models.detection,
}


def row(what: str, wanted: Collection[str], found: Collection[str]) -> str:
    """How many there are, and those that are missing."""
    missing = sorted(set(wanted) - set(found))
    return f"{what}: {len(wanted) - len(missing)} of {len(wanted)} {' '.join(missing)}".rstrip()


def main() -> None:
    """Print a row a kind."""
    names = load(DOCS / "coverage.json")
    of = {kind: {n.partition(":")[2] for n in names if n.startswith(f"{kind}:")} for kind in KINDS}
    for kind, module in KINDS.items():
        print(row(kind, torchvision.models.list_models(module=module), of[kind]))
    ours = {n.partition(":")[2] for n in names if n.startswith("timm:")}
    families = timm.list_modules()
    print(
        row(
            "timm's families",
            families,
            [f for f in families if ours & set(timm.list_models(module=f))],
        )
    )


if __name__ == "__main__":
    main()
