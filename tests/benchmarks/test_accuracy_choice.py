"""What the accuracy page says of the choice of an objective."""

import accuracy_choice
import accuracy_presets
import pytest
from accuracy_results import key_of
from test_accuracy_benchmark import line_for


def runs(gains):
    """Runs in which a method's final exit is so many points above plain's, by seed; on test images below."""
    found = {}
    for method, by_seed in {"plain": dict.fromkeys((1, 2, 3), 0), **gains}.items():
        (job, *_) = accuracy_presets.preset("overfit", methods=[method], networks=["ResNet10"])
        found["ResNet10", method] = {
            seed: {
                **line_for({**job, "seed": seed}, 0.3 - gain / 100),
                "screening": {"final": 0.3 + gain / 100},
            }
            for seed, gain in by_seed.items()
        }
    return found


def rows_of(text):
    _, _, *rows = text.splitlines()
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_the_least_regret_is_of_the_objective_that_is_never_far_behind():
    under = runs({"eed-kl": {1: 0.5, 2: 0.5, 3: 0.5}, "eed-mse": {1: -2, 2: -2, 3: -2}})
    over = runs({"eed-kl": {1: 1, 2: 1, 3: 1}, "eed-mse": {1: 3, 2: 3, 3: 3}})
    found = rows_of(accuracy_choice.regret_table({"under": under, "over": over}))
    assert [row[:3] for row in found] == [["eed-kl", "3, 3", "2.00"], ["eed-mse", "3, 3", "2.50"]]
    assert found[0][3:5] == ["+0.50 ± 0.00 ▲", "+1.00 ± 0.00 ▲"]
    assert found[1][5:] == ["+2.00 ± 0.00 ▲", "-3.00 ± 0.00 ▼"], "test images are told, and choose nothing"


def test_objectives_are_compared_on_the_seeds_that_all_of_them_have():
    """The second seed is a bad one; an objective that was not run with it gains nothing by that."""
    one = runs({"eed-kl": {1: 3, 2: -1}, "eed-mse": {1: 2}, "beed": {1: 1, 3: 9}})
    assert accuracy_choice.common(one) == [("ResNet10", 1)]
    found = rows_of(accuracy_choice.regret_table({"a": one, "b": one}))
    assert [(row[0], row[1], float(row[2])) for row in found] == [
        ("eed-kl", "1, 1", 0.0),
        ("eed-mse", "1, 1", 1.0),
        ("beed", "1, 1", 2.0),
    ]
    assert accuracy_choice.against(one, "dbt", "plain", accuracy_choice.seen(one)) is None
    (only,) = rows_of(accuracy_choice.regret_table({"a": one}, ["eed-kl"]))
    assert only[:4] == ["eed-kl", "2", "0.00", "+1.00 ± 25.41"], "without the others it has both of its seeds"


def test_what_is_said_of_an_objective():
    one = runs({"eed-kl": {1: 3, 2: 1}, "eed-mse": {1: 2, 2: 2.5}})
    two = runs({"eed-kl": {1: 3, 2: 2}, "eed-mse": {1: 2, 2: 4}})
    gained, told = (
        " ".join(text.split())
        for text in accuracy_choice.answer({"a": one, "b": two}, "eed-kl").split("\n\n")
    )
    # On test images, which `runs` mirrors: -3 and -1, then -3 and -2, with t(0.975, 1) times 1 and 0.5.
    assert gained.endswith("a -2.00 ± 12.71 (2 pairs); b -2.50 ± 6.35 (2 pairs).")
    # -1 and 1.5 have a mean of 0.25; -1 and 2 one of 0.5, and t(0.975, 1) = 12.706 times 1.5.
    assert told.endswith(
        "a, `eed-mse` is +0.25 ± 15.88 ahead of it; b, `eed-mse` is +0.50 ± 19.06 ahead of it."
    )
    assert "a, no other is ahead of it" in accuracy_choice.answer({"a": runs({"eed-kl": {1: 3}})}, "eed-kl")
    assert accuracy_choice.answer({"a": {}}, "eed-kl") == ""


def test_a_default_is_confirmed_on_what_had_no_part_in_its_choice():
    """Seed 3 chose it, seeds 4 and 5 did not; and no seed of another network did."""
    chosen, fresh = (dict.fromkeys((3, 4, 5), gain) for gain in (3, 1))
    found = runs({"cross-entropy": fresh, "eed-kl": fresh, "eed-kl-output": {**chosen, 4: 2, 5: 4}})
    found["ResNet10", "plain"] = dict.fromkeys((3, 4, 5), found["ResNet10", "plain"][1])
    found |= {("ResNeXt14", method): {1: seeds[4]} for (_, method), seeds in found.items()}
    found |= {("VGG11", method): {4: found["ResNet10", method][4]} for method in ("plain", "eed-kl-output")}
    ours, alone, other, every = rows_of(accuracy_choice.fresh_table(found))
    assert alone == ["VGG11", "1", "+2.00", "-2.00", "–", "–", "–", "–"], "and no part in what is said of all"
    assert ours[:4] == ["ResNet10", "2", "+3.00 ± 12.71", "-3.00 ± 12.71"]
    assert ours[4] == ours[6] == "+2.00 ± 12.71"
    assert other[:3] == ["ResNeXt14", "1", "+2.00"]
    assert every[:2] == ["all", "3"] and every[2].startswith("+2.67 ± 2.87 (p 0.250)")
    assert accuracy_choice.fresh_table({}) == "No runs yet.\n"


def test_runs_of_the_benchmark_of_heads_are_a_regime_of_their_own():
    """Those of the default head alone, at the full width, each under the name of its objective."""
    settings = {"part": "joint", "network": "VGG11", "dataset": "cifar100", "seed": 1, "width": 0.25}
    right = {"exits": [0.5, 0.6], "budgets": {}}

    def line(exits=right, **changed):
        found = {**settings, "head": "light", **changed}
        return {"settings": found, "heads": {found["head"]: {"validation": exits, "test": exits}}}

    lines = [line(), line(objective="cross-entropy"), line(head="linear"), line(part="frozen", head="all")]
    lines += [line({"exits": [0.7]}, part="plain", head="plain")]
    lines += [line({"exits": [0.4]}, part="plain", head="plain", width=0.125)]
    found = accuracy_choice.short(dict(enumerate(lines)))
    case = "VGG11, cifar100"
    assert found.keys() == {(case, "eed-kl"), (case, "cross-entropy"), (case, "plain")}
    assert found[case, "eed-kl"][1]["test"]["last"] == {"exit_1": 0.5, "final": 0.6}
    assert found[case, "plain"][1]["screening"] == {"final": 0.7}


def test_objectives_are_compared_on_the_same_images():
    """Older runs were not looked at on the images kept for the choice: then no run is judged by these."""
    found = runs({"eed-kl": {1: 3}, "eed-mse": {1: 2}})
    (told, _) = rows_of(accuracy_choice.regret_table({"a": found}))
    assert told[3] == "+3.00"
    del found["ResNet10", "plain"][1]["screening"]
    for row in rows_of(accuracy_choice.regret_table({"a": found})):
        assert row[3] == row[4] != "+3.00", (
            "validation during training, which is made as the test accuracy is"
        )


def test_tables_of_early_exit_are_made_of_what_is_done():
    """What a network costs beside the plain one, and its accuracy at each budget that it can keep."""
    lines = {}
    for name in ("overfit", "narrow", "half", "heads", "first"):
        methods = accuracy_presets.HALF if name in ("overfit", "half") else None
        if name == "overfit":
            methods = ("plain", *methods)
        for job in accuracy_presets.preset(name, networks=["ResNet10"], methods=methods, seeds=[1, 2]):
            line = line_for(job, 0.3)
            line["multiply_adds"] = [int(1000 * job["width"])]
            accuracy = 0.25 + 0.01 * job["seed"] * (job["method"] == "eed-kl-output")
            line["early_exit"] = {"0.5": {"accuracy": accuracy, "multiply_adds": 1}} if job["exits"] else {}
            lines[key_of(job)] = line
    half, first = rows_of(accuracy_choice.half_table(lines)), rows_of(accuracy_choice.first_table(lines))
    assert [row[1:5] for row in half[:3]] == [
        ["none", "plain", "100%", "2"],
        ["none", "plain, smaller", "70%", "2"],
        ["none", "plain, smaller", "54%", "2"],
    ]
    told = {(row[1], row[2]) for row in half[3:]}
    objectives = ("cross-entropy", "eed-kl", "eed-kl-output")
    assert {(f"`{head}`", method) for head in ("light", "conv") for method in objectives} <= told
    zeros = "light_hidden, classifiers of zeros"
    assert {(f"`{head}`", "eed-kl") for head in (*accuracy_presets.HEADS, zeros)} <= told
    assert len(told) == len(half) - 3
    assert "50% less `cross-entropy` +1.50 ± 6.35 (2 pairs)" in " ".join(
        accuracy_choice.early_answer(lines).split()
    )
    assert half[3][-3:] == ["–", "25.0 ± 0.0", "+0.00 ± 0.00"]
    ways = {row[1] for row in first}
    assert (
        len(first) == 3
        and {"30 alone, 30 exits alone", "30 alone, 30 together", "60 epochs together"} == ways
    )
    assert accuracy_choice.half_table({}) == accuracy_choice.first_table({}) == "No runs yet.\n"


@pytest.mark.parametrize("name", ["second", "overfit", "half", "narrow", "first", "heads"])
def test_runs_of_the_new_presets_have_keys_of_their_own(name):
    jobs = accuracy_presets.preset(name)
    keys = {key_of(job) for job in jobs if job["rate"]}
    for other in ("main", "overfit", "half", "narrow", "first", "heads"):
        if other != name:
            assert not keys & {key_of(job) for job in accuracy_presets.preset(other) if job["rate"]}
