"""Tables, pictures and statements from the runs of accuracy.py.

    python benchmarks/accuracy_report.py            # writes docs/accuracy.md and its pictures
    python benchmarks/accuracy_report.py --print    # only shows it

Works on whatever is there, and says what is missing. Every statement follows from the numbers by a rule that
is given with it; nothing is written by hand.
"""

import argparse
import collections
import functools
import pathlib
import textwrap
from types import MappingProxyType

import heads
from accuracy import RESULTS, count_done
from accuracy_choice import choice
from accuracy_pictures import pictures
from accuracy_presets import (
    FINALISTS,
    MAIN,
    OVERFIT,
    PRESETS,
    RATES,
    REMEDIES,
    SEARCH,
    SEARCHED_ON,
    WIDER,
    preset,
)
from accuracy_results import Results
from accuracy_runs import GLYPHS, OVERFITTED, SECTIONS, begun, has_runs, reported
from accuracy_tables import claims_table, finalists_table, remedies_table, section_tables, sizes_table

DOCUMENT = pathlib.Path(__file__).parent.parent / "docs" / "accuracy.md"


def missing(lines):
    """What of each preset is not there yet."""
    for name in PRESETS:
        if name in ("smoke", "paper"):
            continue
        jobs = preset(name)
        done = count_done(jobs, lines)
        state = "." if done == len(jobs) else ": **unfinished**."
        yield f"- `python benchmarks/accuracy.py --preset {name}`: {done} of {len(jobs)} runs{state}"
    wrong = [line["settings"] for line in lines.values() if line["diverged"]]
    if wrong:
        counts = collections.Counter((s["method"], s["rate"]) for s in wrong)
        told = ", ".join(f"{method} at rate {rate:g} ({n})" for (method, rate), n in sorted(counts.items()))
        yield f"- Runs whose loss became infinite or NaN: {told}."


def edges(runs):
    """How often the smallest, the middle and the largest learning rate of a search was chosen."""
    chosen = (
        next(iter(seeds.values()))["settings"]
        for point, seeds in runs.items()
        if point[0] != OVERFITTED.dataset
    )
    counts = collections.Counter(RATES[SEARCHED_ON[s["network"]]].index(s["rate"]) for s in chosen)
    return ", ".join(f"{which} {counts[i]}" for i, which in enumerate(("smallest", "middle", "largest")))


# All of it
TITLE = """\
# Accuracy: what the exits gain

Made by `python benchmarks/accuracy_report.py` from the lines of `benchmarks/results/accuracy.jsonl`: each is
one training by `benchmarks/accuracy.py`, on one core. All of them can be run again, one by one too: `python
benchmarks/accuracy.py --preset overfit --data-dir FOLDER --networks ResNet10 --methods eed-kl --seeds 1
--results again.jsonl`. The paper's own setting (full-size networks, all of CIFAR-100, 200 epochs) needs a
GPU: `python benchmarks/gpu/study.py`, which trains several seeds side by side by Keras on JAX, or `--preset
paper` on TensorFlow.
"""
INTRODUCTION = """\
**Under-fitted**: {recipe}.

**Over-fitted**: {overfit}.

Accuracies are of test images, in percent, after the last epoch; "best epoch" is the epoch whose final exit
was best on the validation images. ± is the half-width of the 95% t-interval over seeds. Differences are
paired: the same seed means the same first weights and images. p is of the exact sign-flip test: with 5
pairs it cannot be below 2/32 = 0.063, with the 20 pairs of all networks together it can. ▲ and ▼ mark
differences whose interval leaves out 0, and whose p, where there are at least six pairs, is below 0.05.
Many comparisons are shown, so about one in twenty of them would be marked by chance alone. The intervals
tell of seeds (first weights, order, training images) on these networks, not of other networks or data sets.

The learning rates to choose from were moved once, when the first searches had their best at an edge of what
they tried. A search sees validation images alone. Seed 0 is left out: its test accuracy had been looked at
while the recipes were made.
"""
CHOSEN = f"""
{" and ".join(FINALISTS)} are not of the papers. They were chosen among {len(REMEDIES)} candidates on six of
these pairs; what remains when that is corrected for stands under [the finalists](#the-finalists).
"""
REMEDIES_INTRODUCTION = """\
Small changes of EED and BEED, each meant to take away one reason why the final exit does not gain
(`benchmarks/accuracy_methods.py` has the formulas), on the network where `eed-kl` gained and the one where it
lost, 3 seeds each, with a search of its learning rate as every method had. The best by validation images go
into the main table, where half of the networks and two of the seeds had no part in the choice.
"""


def _filled(text):
    """The text with its paragraphs wrapped anew."""
    fill = functools.partial(textwrap.fill, width=110, break_on_hyphens=False, break_long_words=False)
    return "\n\n".join(map(fill, text.split("\n\n")))


def report(lines, folder=None, heads_lines=MappingProxyType({})):
    """The report as Markdown; with a folder, its pictures are written there."""
    runs = reported(lines)
    tried = "; ".join(f"{', '.join(map(str, rates))} on {network}" for network, rates in RATES.items())
    recipe = (
        f"{MAIN['train_size']:,} training images, {MAIN['epochs']} epochs, batches of {MAIN['batch']}, SGD "
        f"with momentum 0.9, L2 of {MAIN['l2']:g} and a cosine decay from the best of three rates "
        f"({tried}) for each method and data set, by its validation after "
        f"{SEARCH['epochs']} epochs of {SEARCH['train_size']:,} images; exits at each resolution, with the "
        "paper's convolutional heads"
    )
    overfit = (
        f"{OVERFIT['train_size']:,} training images of CIFAR-100, {OVERFIT['epochs']} epochs, batches of "
        f"{OVERFIT['batch']}, the same optimizer, a learning rate of 0.1 without a search, in the paper's "
        f"steps; widths: {', '.join(f'{network} × {width:g}' for network, (width, _) in WIDER.items())}"
    )
    parts = [_filled(TITLE), *choice(lines, heads_lines), "\n## How it was measured\n"]
    parts += [
        _filled(INTRODUCTION.format(recipe=recipe, overfit=overfit)),
        "\nWhat there is:\n",
        *missing(lines),
    ]
    parts.append(f"- Of the three learning rates, number of table rows that chose which: {edges(runs)}.")
    for section in SECTIONS:
        if section is OVERFITTED:  # not yet finished: its tables have what there is
            section = begun(section, runs)
        parts.append(f"\n## {section.title}\n")
        if not has_runs(runs, section):
            parts.append("No runs yet.")
            continue
        parts += ["### Which claims held\n", claims_table(runs, section)]
        parts += [CHOSEN if section == GLYPHS else "", *section_tables(runs, section)]
    parts += ["\n## More epochs, more images (ResNet10, characters)\n", sizes_table(runs)]
    parts += [
        "\n## Candidates for better objectives (characters)\n",
        REMEDIES_INTRODUCTION,
        remedies_table(runs),
    ]
    parts += ["\n### The finalists\n", finalists_table(runs)]
    if folder is not None:
        made = pictures(runs, folder)
        if made:
            parts.append("\n## Pictures\n")
            parts += [f"![{shows}]({folder.name}/{name})\n" for name, shows in made]
    text = "\n".join(parts)
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.rstrip() + "\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--heads", type=pathlib.Path, default=heads.RESULTS, help="runs of heads.py")
    parser.add_argument("--output", type=pathlib.Path, default=DOCUMENT)
    parser.add_argument("--print", action="store_true", help="show the report, write nothing")
    args = parser.parse_args(arguments)
    lines, heads_lines = (Results(path, "claims").read() for path in (args.results, args.heads))
    if args.print:
        print(report(lines, None, heads_lines))
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(report(lines, args.output.parent / "pictures", heads_lines))


if __name__ == "__main__":
    main()
