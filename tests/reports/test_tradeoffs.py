"""The trade-off: its figures against sklearn and against plain loops, its table, picture and page."""

import html.parser
import io
import math

import browser
import numpy as np
import pytest
from draws import COST, draw

import keras_exitens as kx
from keras_exitens import _scores as scores
from keras_exitens import policies
from keras_exitens._calibration.threshold_search import exits_of
from keras_exitens._reports import statistics as exit_statistics

matplotlib = pytest.importorskip("matplotlib.image")


@pytest.fixture(scope="module")
def records():
    return draw(np.random.default_rng(0), 600)


@pytest.fixture(scope="module")
def others():
    return draw(np.random.default_rng(1), 500)


@pytest.fixture(scope="module")
def curve(records, others):
    policy = kx.calibrate(records, COST, max_accuracy_drop=0.02, temperature=True, policy="entropy")
    return kx.tradeoff(others, COST, chosen_on=records, chosen=policy)


def test_statistics_of_exits_against_loops_and_sklearn(records):
    metrics = pytest.importorskip("sklearn.metrics")
    final = records.logits[-1].argmax(-1)
    found = exit_statistics.of_exits(records, [1.0, 2.0, 1.0, 0.5])
    for i, (exit, temperature) in enumerate(zip(found, [1.0, 2.0, 1.0, 0.5], strict=True)):
        label = records.logits[i].argmax(-1)
        right = label == records.labels
        assert exit.name == records.names[i] and exit.accuracy == pytest.approx(right.mean())
        mean = np.mean(records.logits[: i + 1], axis=0).argmax(-1)
        assert exit.ensemble_accuracy == pytest.approx((mean == records.labels).mean())
        assert exit.overthinking == pytest.approx(np.mean(right & (final != records.labels)))
        assert exit.agreement == pytest.approx((label == final).mean())
        confidence = scores.max_probability(np, records.logits[i] / temperature)
        assert exit.auroc == pytest.approx(metrics.roc_auc_score(right, confidence))
        error = 0.0
        for low in np.arange(15) / 15:
            inside = (confidence >= low) & (confidence < low + 1 / 15)
            if inside.any():
                error += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
        assert exit.calibration_error == pytest.approx(error / len(records), abs=1e-6)
        assert exit.bins[0].sum() == len(records)


def test_auroc_with_ties_and_without_both_kinds():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    score, right = np.round(rng.uniform(size=300), 1), rng.uniform(size=300) < 0.4
    assert exit_statistics.auroc(score, right) == pytest.approx(metrics.roc_auc_score(right, score))
    assert exit_statistics.auroc(np.arange(4), np.array([False, False, True, True])) == 1
    assert exit_statistics.auroc(np.ones(4), np.array([False, False, True, True])) == 0.5
    assert math.isnan(exit_statistics.auroc(np.arange(3), np.ones(3, bool)))


def test_perfectly_calibrated_probabilities_have_no_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.2, 1, 200_000)
    counts, accuracy, mean = exit_statistics.reliability(confidence, rng.uniform(size=200_000) < confidence)
    np.testing.assert_allclose(accuracy[counts > 0], mean[counts > 0], atol=0.02)
    assert counts[0] == 0 and np.isnan(accuracy[0])


def test_points_are_what_their_policies_do(curve, others):
    assert len(curve.points) > 20
    for point in curve.points[::7]:
        found = point.policy.simulate(others.logits)
        assert point.accuracy == pytest.approx((found["logits"].argmax(-1) == others.labels).mean())
        assert point.cost == pytest.approx(np.take(COST, found["exit"]).mean() / 100)
        np.testing.assert_allclose(point.shares, np.bincount(found["exit"], minlength=4) / 500)
        full = (others.logits[-1].argmax(-1) == others.labels).mean()
        assert point.accuracy_drop == pytest.approx(full - point.accuracy)
    assert curve.full_accuracy == pytest.approx(full)
    assert curve.exit_costs == (0.25, 0.45, 0.8, 1.0)


def test_chosen_policy_may_be_of_any_kind(curve, others):
    chosen = curve.chosen
    assert type(chosen.policy) is policies.Entropy
    found = chosen.policy.simulate(others.logits)
    np.testing.assert_array_equal(chosen.exit, found["exit"])
    np.testing.assert_allclose(chosen.score, found["score"], rtol=1e-6)
    np.testing.assert_array_equal(chosen.right, found["logits"].argmax(-1) == others.labels)
    assert chosen.cost == pytest.approx(np.take(COST, found["exit"]).mean() / 100)


@pytest.mark.parametrize("ensemble", [False, True])
def test_where_chosen_and_measured_on_the_same_images_nothing_on_the_curve_is_beaten(records, ensemble):
    curve = kx.tradeoff(records, COST, "margin", ensemble=ensemble)
    cost, accuracy = np.array([(p.cost, p.accuracy) for p in curve.points]).T
    assert (np.diff(cost) > 0).all() and (np.diff(accuracy) > 0).all()
    for budget in (0.3, 0.5, 0.7):  # the policy of `calibrate` is on it, or a little better by refinement
        policy = kx.calibrate(records, COST, cost_budget=budget, policy="margin", ensemble=ensemble)
        below = accuracy[cost <= budget].max()
        assert below <= policy.calibration.accuracy <= below + 0.03
    best = kx.calibrate(records, COST, max_accuracy_drop=0.01, policy="margin", ensemble=ensemble)
    assert curve.chosen.accuracy_drop <= 0.01 + 1e-9
    assert best.calibration.cost <= curve.chosen.cost < best.calibration.cost + 0.02


def test_frame_and_table(curve):
    pandas = pytest.importorskip("pandas")
    frame = curve.frame()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(curve.points)
    np.testing.assert_allclose(frame.filter(like="share_").sum(axis=1), 1)
    assert list(frame)[:4] == ["cost", "accuracy", "accuracy_drop", "share_exit_1"]
    text = curve.table()
    assert text == str(curve) and "500 images" in text
    row = next(line for line in text.splitlines() if line.startswith("chosen"))
    assert f"{curve.chosen.accuracy:.1%}" in row and f"{curve.chosen.cost:.1%}" in row
    for exit in curve.exits:
        row = next(line for line in text.splitlines() if line.startswith(f"{exit.name} "))
        assert f"{exit.accuracy:.1%}" in row and f"{exit.auroc:.3f}" in row


def test_picture(curve):
    figure = curve.plot()
    top, bottom = figure.subfigs
    line = top.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [100 * p.cost for p in curve.points])
    np.testing.assert_allclose(line.get_ydata(), [100 * p.accuracy for p in curve.points])
    bars = top.axes[1].patches
    heights = [
        right.get_height() + wrong.get_height() for right, wrong in zip(bars[:4], bars[4:], strict=True)
    ]
    np.testing.assert_allclose(heights, 100 * np.array(curve.chosen.shares))
    assert {bar.get_hatch() for bar in bars} == {None, "xxx"}  # told apart without colours
    assert len(bottom.axes) == 4
    for axis in (*top.axes, bottom.axes[0]):
        assert axis.get_title() and axis.get_xlabel() and axis.get_ylabel()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    assert file.getvalue().startswith(b"\x89PNG")


def test_many_exits_and_one(records):
    many = draw(np.random.default_rng(0), 60, exits=8)
    curve = kx.tradeoff(many, range(1, 9))
    assert len(curve.plot().subfigs[1].axes) == 12 and "exit_7" in curve.table()
    one = kx.tradeoff(draw(np.random.default_rng(0), 60, exits=1), [1])
    assert one.chosen.cost == 1 and len(one.points) == 1
    one.plot().canvas.draw()


class Page(html.parser.HTMLParser):
    """Counts what a page holds, and what it loads from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.pictures, self.elsewhere = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        if tag == "img":
            self.pictures.append(attributes["src"])
            assert attributes["alt"]
        elsewhere = [v for k, v in attributes.items() if k in ("src", "href") and not v.startswith("data:")]
        self.elsewhere += elsewhere


@pytest.fixture(scope="module")
def page(curve, tmp_path_factory):
    images = np.random.default_rng(0).normal(size=(500, 8, 8, 1))
    path = tmp_path_factory.mktemp("page") / "page.html"
    curve.to_html(path, images=images, title="Exits <of> a & b")
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    return path


def test_page_is_whole_and_needs_no_other_file(page, curve):
    found = Page(page.read_text(encoding="utf-8"))
    assert len(found.pictures) == 3 and not found.elsewhere
    assert "script" not in found.tags and "link" not in found.tags
    assert found.tags.count("table") == 2
    text = page.read_text(encoding="utf-8")
    assert "<h1>Exits &lt;of&gt; a &amp; b</h1>" in text
    assert f"{curve.chosen.accuracy:.1%} of 500 images" in text
    first = curve.chosen.exit.min()
    assert text.count(f"{curve.exits[first].name}, ") >= 12 and text.count("final, ") >= 12


def test_page_in_a_browser(page, curve):
    with browser.chromium(900, 1200) as window:
        window.get(page.as_uri())
        expected = [(1000, 500), (300, 100), (300, 100)]  # the curve and what stands below it, images
        text, pictures = browser.wait_for(
            window, "Exits <of> a & b", "Images that leave last", pictures=expected
        )
        overflow = window.execute_script("return document.body.scrollWidth - document.body.clientWidth")
    for exit in curve.exits:
        assert f"{exit.accuracy:.1%}" in text
    assert len(pictures) == 3
    assert overflow <= 0


def test_images_that_leave_first_are_the_surest(curve):
    first = np.lexsort((-curve.chosen.score, curve.chosen.exit))[0]
    assert curve.chosen.exit[first] == curve.chosen.exit.min()
    same = curve.chosen.exit == curve.chosen.exit[first]
    assert curve.chosen.score[first] == curve.chosen.score[same].max()


def test_what_does_not_fit_is_refused(curve, records, others, tmp_path):
    with pytest.raises(ValueError, match="500 images, in the order"):
        curve.to_html(tmp_path / "page.html", images=np.zeros((4, 8, 8)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="costs do not belong"):
        kx.tradeoff(records, [1, 2])
    with pytest.raises(ValueError, match="not of one network"):
        kx.tradeoff(records, COST, chosen_on=draw(np.random.default_rng(0), 50, exits=3))
    with pytest.raises(ValueError, match="number of exits"):
        kx.tradeoff(records, COST, chosen=policies.Margin([0.5, 0.5]))
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        kx.tradeoff(records, COST, "margins")


def test_with_two_levels_all_images_leave_at_one_exit(records):
    curve = kx.tradeoff(records, COST, levels=2)
    assert {tuple(point.shares) for point in curve.points} <= {tuple(row) for row in np.eye(4)}
    assert len(curve.points) > 1
    with pytest.raises(ValueError, match="levels=1"):
        kx.tradeoff(records, COST, levels=1)


def test_exits_of_and_policies_agree(records):
    policy = kx.calibrate(records, COST, max_accuracy_drop=0.05)
    used = policy.enabled_exits(4)
    score = np.array([policy.score(records.logits[i]) for i in used[:-1]])
    taken = exits_of(score, [policy.thresholds[i] for i in used[:-1]])
    np.testing.assert_array_equal(np.take(used, taken), policy.decide(records.logits))
