"""The accuracy benchmark: what is run, what is kept, the statistics, and the report from the numbers."""

import json
import math
import os
import pathlib
import subprocess
import sys

import accuracy
import accuracy_lines
import accuracy_methods
import accuracy_presets
import accuracy_report
import accuracy_runs
import accuracy_statistics
import accuracy_tables
import glyphs
import keras
import numpy as np
import pytest
from accuracy_results import Results, key_of
from reference import softmax
from scipy import stats

from keras_exitens import objectives

BENCHMARKS = pathlib.Path(accuracy.__file__).parent
RATES = (0.006, 0.02, 0.06)


def line_for(settings, accuracy_of_final=0.5, exits=3):
    names = [*(f"exit_{i}" for i in range(1, exits + 1)), "final"] if settings["exits"] else ["final"]
    found = dict.fromkeys([*names, "ensemble"], accuracy_of_final)
    return {
        "settings": settings,
        "exits": names,
        "diverged": False,
        "validation": {
            name: [value / 2, *[value] * (settings["epochs"] - 1)] for name, value in found.items()
        },
        "training": {name: [value] for name, value in found.items()},
        "test": {"last": found, "best": found},
        "total_seconds": 1.0,
    }


# What is run


def test_main_is_balanced_and_seed_major():
    jobs = accuracy_presets.preset("main", ["glyphs"])
    reported = [job for job in jobs if job["seed"] != accuracy_presets.SEARCH_SEED]
    assert len(jobs) == 2 * 7 * 3 + 4 * 7 * 5 and len(reported) == 4 * 7 * 5
    assert [job["seed"] for job in reported] == sorted(job["seed"] for job in reported)
    for seed in accuracy_presets.SEEDS:
        cells = {(job["network"], job["method"]) for job in reported if job["seed"] == seed}
        assert len(cells) == 4 * 7
    assert {job["exits"] for job in jobs if job["method"] == "plain"} == {0}
    assert {job["exits"] for job in jobs if job["method"] != "plain"} == {2, 3}
    # The same budget of learning rates for all, first, in a seed that is not reported.
    searched = jobs[: len(jobs) - len(reported)]
    assert {job["seed"] for job in searched} == {
        accuracy_presets.SEARCH_SEED
    } and accuracy_presets.SEARCH_SEED not in accuracy_presets.SEEDS
    budgets = {}
    for job in searched:
        budgets.setdefault((job["network"], job["method"]), []).append((job["rate"], job["epochs"]))
    assert len(budgets) == 2 * 7
    for (network, _), budget in budgets.items():
        assert budget == [(rate, 10) for rate in accuracy_presets.RATES[network]] and len(budget) == 3


def test_every_method_of_a_preset_can_be_made():
    for name in accuracy_presets.PRESETS:
        for job in accuracy_presets.preset(name):
            assert job["method"] in accuracy_methods.METHODS
    assert tuple(accuracy_methods.PAPER) == accuracy_presets.PAPER
    assert tuple(accuracy_methods.REMEDIES) == accuracy_presets.REMEDIES
    assert tuple(accuracy_methods.SECOND) == accuracy_presets.SECOND


def test_the_papers_recipe():
    (job, *_) = accuracy_presets.preset("paper", methods=["eed-mse"], networks=["ResNet18"])
    assert job["rate"] == 0.1 and job["epochs"] == 200 and job["batch"] == 128 and job["l2"] == 5e-4
    assert job["width"] == 1.0 and job["train_size"] is None and job["dataset"] == "cifar100"
    rate = accuracy.learning_rate(job, 2000)
    assert [float(rate(step)) for step in (0, 749, 751, 1299, 1301, 1799, 1801)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]
    )


def test_only():
    jobs = [{"method": "eed-kl", "seed": 1, "rate": 0.06}, {"method": "plain", "seed": 2, "head": "light"}]
    first, second = ([job] for job in jobs)
    assert accuracy.selected([], jobs) == jobs
    assert accuracy.selected(["method=eed-kl", "seed=1"], jobs) == first
    assert accuracy.selected(["method=eed"], jobs) == [] and accuracy.selected(["eed"], jobs) == first
    assert accuracy.selected(["eed", "seed=2"], jobs) == []
    assert accuracy.selected(["head=light"], jobs) == second, "a field that some of the runs have not"
    with pytest.raises(SystemExit, match="no such field; there are method, seed, rate, head"):
        accuracy.selected(["sead=1"], jobs)


def test_the_plain_network_has_no_head():
    """It is one run, whichever heads it is compared with."""
    jobs = accuracy_presets.preset("families", networks=["ResNeXt14"], seeds=[1])
    assert sum(job["method"] == "plain" for job in jobs) == 1
    (plain,) = accuracy_presets.preset("overfit", networks=["ResNeXt14"], seeds=[1], methods=["plain"])
    assert plain in jobs and "head" not in plain
    light = {job["method"] for job in jobs if job.get("head") == "light"}
    assert light == set(accuracy_presets.HALF)


def test_the_rate_is_chosen_on_validation_alone():
    job = accuracy_presets.preset("main", ["glyphs"], ["ResNeXt14"], ["dbt"])[-1]
    lines = {}
    found = {0.006: 0.7, 0.02: 0.8, 0.06: 0.6}
    for settings in accuracy_presets.searches(job, RATES):
        assert accuracy.chosen_rate(job, lines, RATES) is None, "not before the search is finished"
        line = line_for(settings, found[settings["rate"]])
        line["test"]["last"] = dict.fromkeys(line["test"]["last"], 1 - found[settings["rate"]])
        lines[key_of(settings)] = line
    assert accuracy.chosen_rate(job, lines, RATES) == 0.02
    next(line for line in lines.values() if line["settings"]["rate"] == 0.02)["diverged"] = True
    assert accuracy.chosen_rate(job, lines, RATES) == 0.006


# What is kept


def test_keys_depend_on_every_setting_and_on_nothing_else():
    (job, *_) = accuracy_presets.preset("main")
    assert key_of(job) == key_of(dict(reversed(job.items())))
    keys = {key_of(job)} | {key_of({**job, field: "other"}) for field in job}
    assert len(keys) == len(job) + 1
    jobs = accuracy_presets.preset("main")
    assert len({key_of(job) for job in jobs}) == len(jobs) - len(
        [j for j in jobs if j["rate"] is None]
    ) + len({key_of(j) for j in jobs if j["rate"] is None})


def test_a_torn_line_is_passed_over(tmp_path):
    results = Results(tmp_path / "r.jsonl", tmp_path)
    results.append({"settings": {"a": 1}})
    with open(results.path, "a") as file:
        file.write('{"settings": {"a": 2')
    results.append({"settings": {"a": 3}})
    assert [line["settings"]["a"] for line in results.read().values()] == [1, 3]


def test_a_claim_keeps_other_processes_off_and_ends_with_the_process(tmp_path):
    results = Results(tmp_path / "r.jsonl", tmp_path)
    settings = {"a": 1}
    code = (
        "import sys; from accuracy_results import Results\n"
        f"with Results({str(results.path)!r}, {str(tmp_path)!r}).claim({{'a': 1}}) as mine: print(mine)"
    )

    def other():
        environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
        )
        return done.stdout.strip()

    with results.claim(settings) as mine:
        assert mine and other() == "False"
    assert other() == "True"
    results.append({"settings": settings})
    with results.claim(settings) as mine:
        assert not mine, "it is done"


def test_a_sweep_goes_on_where_it_was_stopped(tmp_path):
    jobs = accuracy_presets.preset("main", ["glyphs"], ["VGG11"], ["plain", "dbt"], [1, 2])
    results = Results(tmp_path / "r.jsonl", tmp_path)
    done = []

    def do(settings):
        done.append(settings)
        return line_for(settings, 1 - settings["rate"])

    left = accuracy.work(jobs, results, RATES, do, limit=4, pause=0)
    assert left == len(jobs) - 4 and len(done) == 4
    assert accuracy.work(jobs, Results(results.path, tmp_path), RATES, do, pause=0) == 0
    assert len(done) == len(jobs) == len({key_of(s) for s in done}) == len(results.read())
    assert {s["rate"] for s in done if s["seed"] != accuracy_presets.SEARCH_SEED} == {0.006}
    assert accuracy.work(jobs, results, RATES, do, pause=0) == 0 and len(done) == len(jobs)


def test_a_run_that_waits_for_a_search_that_nobody_does_is_told(tmp_path):
    jobs = accuracy_presets.preset("main", ["glyphs"], ["VGG11"], ["dbt"], [1, 2])
    jobs = [job for job in jobs if job["seed"] == 1]
    assert accuracy.work(jobs, Results(tmp_path / "r.jsonl", tmp_path), RATES, None, pause=0) == 1


# The statistics


def test_interval_is_scipys():
    values = [83.1, 84.0, 82.2, 85.5, 83.9]
    mean, half = accuracy_statistics.interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(accuracy_statistics.interval([1.0])[1])


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_sign_flip_is_scipys_permutation_test(count):
    values = np.random.RandomState(count).normal(0.4, 1, count)
    expected = (
        stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        )
        if count > 1
        else None
    )
    assert accuracy_statistics.sign_flip(values) == pytest.approx(1.0 if count == 1 else expected.pvalue)


def test_sign_flip_by_hand():
    # Signs of (1, 2, 4): sums ±7, ±5, ±3, ±1; of eight, two are as far out as 7, four as 5.
    assert accuracy_statistics.sign_flip([1, 2, 4]) == 2 / 8
    assert accuracy_statistics.sign_flip([-1, 2, 4]) == 4 / 8
    assert accuracy_statistics.sign_flip([0.1] * 5) == 2 / 32, "five seeds cannot give less"
    assert accuracy_statistics.sign_flip([0.3, 0.1] * 10) == 2 / 2**20
    many = accuracy_statistics.sign_flip([*[1.0] * 19, *[-1.0] * 11])
    assert many == pytest.approx(stats.binomtest(19, 30).pvalue, abs=0.005), "random signs, beyond 24 pairs"
    with pytest.raises(ValueError, match="no pairs"):
        accuracy_statistics.sign_flip([])


def test_holm_by_hand():
    assert accuracy_statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert accuracy_statistics.holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert accuracy_statistics.holm([]) == []


def test_verdict():
    assert accuracy_statistics.paired([1.0, 1.2, 0.9, 1.1, 1.0]).verdict == 1
    assert accuracy_statistics.paired([-1.0, -1.2, -0.9, -1.1, -1.0]).verdict == -1
    assert accuracy_statistics.paired([1.0, -1.2, 0.9, -1.1, 1.0]).verdict == 0
    assert accuracy_statistics.paired([1.0]).verdict == 0, "one pair says nothing"
    assert accuracy_statistics.paired([1.0, 1.0]).verdict == 0, "nor do two that agree by chance"
    assert accuracy_statistics.paired([]) is None


# The report


def middle(job):
    return accuracy_presets.RATES[accuracy_presets.SEARCHED_ON[job["network"]]][1]


def synthetic(gain, seeds=accuracy_presets.SEEDS, methods=("plain", "cross-entropy", "eed-kl"), early=0.0):
    """Lines of a whole main table, in which eed-kl gains `gain` at the final exit."""
    lines = {}
    rng = np.random.RandomState(0)
    for job in accuracy_presets.preset("main", ["glyphs"], methods=list(methods), seeds=seeds):
        settings = {**job, "rate": job["rate"] or middle(job)}
        value = 0.8 + 0.01 * rng.rand() + (gain if settings["method"] == "eed-kl" else 0)
        value -= 0.1 * (settings["rate"] != middle(job))
        line = line_for(settings, round(value, 5), settings["exits"])
        for name in line["exits"][:-1]:
            line["test"]["last"][name] += early * (settings["method"] == "eed-kl") - 0.1
        lines[key_of(settings)] = line
    return lines


def cell(text, claim, column):
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {claim} |"))
    return row.split(" | ")[column]


def test_report_says_what_the_numbers_say():
    final = "the final exit is better than with cross-entropy exits"
    assert cell(accuracy_report.report(synthetic(0.05)), final, 2).startswith("**held**: +5.")
    assert cell(accuracy_report.report(synthetic(-0.05)), final, 2).startswith("**the opposite**: -")
    assert cell(accuracy_report.report(synthetic(0.0)), final, 2).startswith("not shown: ")
    text = accuracy_report.report(synthetic(-0.05, early=0.1))
    early = "the early exits are better than with cross-entropy exits (mean)"
    assert cell(text, early, 2).startswith("**held**: ")
    better = "the final exit is better than with eed-kl"
    assert cell(text, better, 3).startswith("not measured yet") and cell(text, better, 2) == "–"


def test_report_counts_pairs_and_takes_the_chosen_rate_alone():
    lines = synthetic(0.05)
    stray = next(x for x in lines.values() if x["settings"]["seed"] == 1)
    stray = json.loads(json.dumps(stray))
    stray["settings"]["rate"] *= 3
    stray["test"]["last"]["final"] = 0.99
    with_stray = {**lines, key_of(stray["settings"]): stray}
    assert accuracy_report.report(with_stray) == accuracy_report.report(lines)
    runs = accuracy_runs.reported(lines)
    found = accuracy_runs.comparison(
        runs, accuracy_runs.GLYPHS, "eed-kl", "cross-entropy", accuracy_lines.test
    )
    assert found["all"].count == 20 and found["VGG11"].count == 5
    assert found["all"].mean == pytest.approx(5, abs=0.5)


def test_the_lead_of_the_teacher_is_told_by_epoch():
    lines = synthetic(0.0)
    for line in lines.values():
        line["validation"]["ensemble"] = [v + 0.03 for v in line["validation"]["final"]]
        line["validation"]["ensemble"][4] -= 0.05
    text = accuracy_tables.teacher_table(accuracy_runs.reported(lines), accuracy_runs.GLYPHS)
    header, _, *rows = text.splitlines()
    assert "| epoch 3 | epoch 5 | epoch 10 |" in header and len(rows) == 4
    assert all("| +3.0 | -2.0 | +3.0 |" in row for row in rows)


def screened(gains, networks=None, seeds=accuracy_presets.SEEDS):
    """Lines in which each method's final exit gains some points over plain's: on validation, and on test."""
    lines = {}
    methods = ["plain", "cross-entropy", "eed-kl", *gains]
    for job in accuracy_presets.preset("remedies", networks=networks, methods=methods, seeds=seeds):
        settings = {**job, "rate": job["rate"] or middle(job)}
        validation, tested = gains.get(settings["method"], (0, 0))
        searched = settings["rate"] == middle(job)
        line = line_for(settings, 0.8 + validation / 100 if searched else 0.1, settings["exits"])
        line["test"]["last"] = {**line["test"]["last"], "final": 0.8 + tested / 100}
        lines[key_of(settings)] = line
    return accuracy_runs.reported(lines)


def test_remedies_are_ranked_by_validation_of_the_screened_seeds():
    runs = screened({"eed-kl-better": (2, -3), "eed-kl-beta": (1, 4)})
    _, _, *rows = accuracy_tables.remedies_table(runs).splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[0] for row in cells][:2] == ["eed-kl-better", "eed-kl-beta"]
    assert [row[1] for row in cells] == ["6"] * 4, "two networks, three of the five seeds"
    assert cells[0][2].startswith("+2.00") and cells[0][3].startswith("-3.00")
    assert cells[1][5].startswith("+4.00"), "beside eed-kl"


def test_finalists_are_judged_on_pairs_that_did_not_choose_them_too(monkeypatch):
    monkeypatch.setattr(accuracy_report, "FINALISTS", ("eed-kl-better",))
    runs = screened({"eed-kl-better": (2, 1)}, networks=list(accuracy_presets.SMALL))
    text = accuracy_tables.finalists_table(runs)
    assert "below 0.05: eed-kl-better." in text
    first = next(row for row in text.splitlines() if row.startswith("| eed-kl-better"))
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    assert cells[:2] == ["eed-kl-better", "final exit − plain"] and cells[2].startswith("+1.00")
    assert cells[3] == "20" and cells[5] == "14"
    p = 5 * 2 / 2**14  # all signs agree; five questions are asked
    assert float(cells[6]) == pytest.approx(p, abs=5e-4)


def test_report_on_partial_data_says_what_is_missing(tmp_path):
    assert "0 of 182 runs: **unfinished**" in accuracy_report.report({})
    lines = dict(list(synthetic(0.05, seeds=[1]).items())[:-5])
    text = accuracy_report.report(lines, tmp_path / "pictures")
    assert f"{len(lines)} of 182 runs" in text and "missing" in text
    for name in ("accuracy_gain_glyphs.png", "accuracy_curves_glyphs.png"):
        assert f"(pictures/{name})" in text and (tmp_path / "pictures" / name).stat().st_size > 1000


def test_epochs_to_reach():
    line = {"validation": {"final": [0.1, 0.5, 0.4, 0.7]}}
    assert accuracy_runs.epochs_to(line, 0.5) == 2
    assert accuracy_runs.epochs_to(line, 0.6) == 4
    assert accuracy_runs.epochs_to(line, 0.8) == math.inf


# Characters in many faces


def test_no_family_stands_on_two_sides():
    faces = [("a.otf", "x", "One"), ("b.otf", "x", "Two"), ("c.ttf", "y", "two"), ("d.ttf", "z", "Four")]
    assert glyphs.families(faces) == [0, 0, 0, 1]
    parts = glyphs.split(100)
    assert np.bincount(parts).tolist() == [60, 10, 10, 20]
    assert (parts == glyphs.split(100)).all()


def test_faces_are_rendered_the_same_each_time(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    fonts = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    path = fonts / "DejaVuSans.ttf"
    upright = glyphs.draw_face(path)
    pictures = np.stack([glyphs.turned(picture, path, i) for i, picture in enumerate(upright)])
    again = [glyphs.turned(picture, path, i) for i, picture in enumerate(glyphs.draw_face(path))]
    assert pictures.shape == (94, 28, 28) and pictures.dtype == np.uint8
    assert (pictures == again).all()
    # One baseline for all: a comma is low, an apostrophe high.
    rows = np.arange(28)
    height = {
        c: (pictures[i].sum(axis=1) @ rows) / pictures[i].sum() for i, c in enumerate(glyphs.CHARACTERS)
    }
    assert height["'"] + 3 < height["x"] < height[","] - 3
    assert glyphs.draw_face(fonts / "STIXSizOneSymReg.ttf") is None, "most characters are missing in it"
    with pytest.raises(FileNotFoundError, match="apt-get install"):
        glyphs.render(glyphs.find_faces(fonts))


# One training


def test_candidates_that_change_nothing_are_eed():
    rng = np.random.RandomState(0)
    logits = [rng.normal(size=(6, 5)).astype("float32") for _ in range(3)]
    features = [rng.normal(size=(6, 4)).astype("float32") for _ in range(3)]
    y = rng.randint(0, 5, 6)

    def total(objective, **state):
        terms, new = objective(logits, features, y, {"step": keras.ops.convert_to_tensor(9), **state})
        return sum(np.asarray(value) for value in terms.values()), new

    plain, _ = total(objectives.EED("kl"))
    assert total(accuracy_methods.LaterWeighsMore(beta=1.0))[0] == pytest.approx(plain, rel=1e-5)
    running = accuracy_methods.RunningLoss(3)
    equal, new = total(
        running, **{name: np.float32(value) for name, value in running.initial_state().items()}
    )
    assert equal == pytest.approx(plain, rel=1e-5), "exits of equal loss have equal weights"
    loss = [-np.log(softmax(z)[np.arange(6), y]).mean() for z in logits]
    assert [float(new[f"loss_{i}"]) for i in range(3)] == pytest.approx(
        [0.98 + 0.02 * value for value in loss], rel=1e-5
    )
    late = {f"loss_{i}": np.float32(value) for i, value in enumerate((2.0, 1.0, 1.0))}
    assert np.allclose(running.shares(3, late), [1 / 9, 4 / 9, 4 / 9])
    ramped = accuracy_methods.make("eed-kl-ramp", 27, 3)
    assert total(ramped)[0] == pytest.approx(plain, rel=1e-5), "a third of 27 steps is over"
    # Where every exit is better than the ensemble at no sample, all are taught all; where always, none.
    better = total(accuracy_methods.OnlyBetter())[0]
    assert (better <= plain + 1e-5).all() and (better < plain - 1e-3).any()


def test_the_second_round_of_candidates_by_hand():
    rng = np.random.RandomState(0)
    logits = [rng.normal(size=(6, 5)).astype("float32") for _ in range(3)]
    features = [rng.normal(size=(6, 4)).astype("float32") for _ in range(3)]
    y = rng.randint(0, 5, 6)
    state = {"step": keras.ops.convert_to_tensor(9)}

    def distillation(objective, logits=logits):
        return np.asarray(objective(logits, features, y, state)[0]["distillation"])

    def taught(teacher, student):  # by EED's soft labels, T = 3
        return -0.1 * 9 * (softmax(teacher / 3) * np.log(softmax(student / 3))).sum(-1)

    both, early = sum(logits) / 3, sum(logits[:2]) / 2
    expected = taught(both, logits[0]) + taught(both, logits[1]) + taught(early, logits[2])
    assert distillation(accuracy_methods.NeverItself()) == pytest.approx(expected, rel=1e-5)

    held = accuracy_methods.HeldOut(3)
    assert np.all(distillation(held) == 0), "nothing is known before the first epoch"
    told = {"val_ensemble_accuracy": 0.8, "val_exit_1_accuracy": 0.7, "val_exit_2_accuracy": 0.775}
    held.hear({**told, "val_final_accuracy": 0.9})
    expected = taught(both, logits[0]) + 0.5 * taught(both, logits[1])
    assert distillation(held) == pytest.approx(expected, rel=1e-5)

    gap = accuracy_methods.make("eed-mse-gap", 10, 3)
    listening = accuracy_methods.Listening(gap)
    assert np.all(distillation(gap) == 0)
    listening.on_epoch_end(0, {"final_accuracy": 0.5, "val_final_accuracy": 0.4})
    assert distillation(gap) == pytest.approx(0.5 * distillation(objectives.EED("mse")), rel=1e-5)
    listening.on_epoch_end(1, {"final_accuracy": 0.9, "val_final_accuracy": 0.4})
    assert distillation(gap) == pytest.approx(distillation(objectives.EED("mse")), rel=1e-5)

    scaled = accuracy_methods.make("eed-mse-scaled", 10, 3)
    alike = [logits[0], 3 * logits[0] + 2, 0.5 * logits[0] - 1]
    assert distillation(scaled, alike) == pytest.approx(0, abs=1e-5), "neither scale nor level counts"
    assert (distillation(scaled) > 0.1).all()


def test_one_training_of_digits():
    *_, job = accuracy_presets.preset("smoke", methods=["eed-kl"])
    settings = {**job, "rate": 0.05, "exits": 1, "train_size": 200}
    line = accuracy.run(settings)
    assert json.loads(json.dumps(line)) == line
    assert line["settings"] == settings and line["exits"] == ["exit_1", "final"]
    for part in ("training", "validation"):
        assert set(line[part]) == {"exit_1", "final", "ensemble"}
        assert all(len(curve) == 2 for curve in line[part].values())
    assert set(line["test"]) == {"last", "best"}
    assert line["best_epoch"] == 1 + int(np.argmax(line["validation"]["final"]))


def test_the_parts_of_a_run_are_apart():
    (job, *_) = accuracy_presets.preset("smoke")
    train, steps, one_pass, shape, classes = accuracy.pipelines({**job, "augment": "none"})
    assert steps == 5 and shape == (8, 8, 1) and classes == 10
    epoch = [images.numpy() for images, _ in train.take(steps)]
    seen = {image.tobytes() for batch in epoch for image in batch}
    for part in ("validation", "calibration", "test"):
        others = {image.tobytes() for images, _ in one_pass(part) for image in images.numpy()}
        assert others and not seen & others
