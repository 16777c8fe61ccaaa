"""Does exit-ensemble distillation do what the paper says? Trains every method on several networks and seeds.

    python benchmarks/accuracy.py --preset main                        # the main table; hours on one core
    python benchmarks/accuracy.py --preset sizes                       # more data, more epochs
    python benchmarks/accuracy.py --preset remedies                    # candidates for better objectives
    python benchmarks/accuracy.py --preset finalists                   # the best of these, in the main table
    python benchmarks/accuracy.py --preset fashion                     # a small table on Fashion-MNIST
    python benchmarks/accuracy.py --preset overfit --data-dir FOLDER   # CIFAR-100, more capacity than images
    python benchmarks/accuracy.py --preset half --data-dir FOLDER      # there, the default head; early exit
    python benchmarks/accuracy.py --preset families --data-dir FOLDER  # there, two more families
    python benchmarks/accuracy.py --preset smoke                       # under a minute
    python benchmarks/accuracy.py --preset paper --dataset cifar100    # the paper's recipe, for a GPU
    python benchmarks/accuracy.py --preset main --list                 # what would run, and what is done

Each run is one line of results/accuracy.jsonl, keyed by its settings. Runs that are there are skipped, so the
script goes on where it was stopped, and several processes may work on one file at once (--processes starts
them; or start the script twice). Runs are ordered by seed: a sweep that was stopped is a fair table of fewer
seeds. --only field=value (repeatable) and --only TEXT narrow it down. accuracy_report.py makes the tables.

How it is kept fair: all methods are trained by the same code, from the same weights, on the same images in
the same order for a seed; the plain network is the same with no exits. Training, validation, calibration and
test images are apart. The learning rate of each method and data set is the best of three on the validation
images, once for VGG and once (on ResNet10) for the residual networks, in runs of half the length with a seed
of their own that never see a test image; all that is reported uses it. A seed sets the first weights, the
order, the augmentation, and which images are trained on.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import gc
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from accuracy_presets import (
    BUDGETS,
    EVERY,
    FIRST_RATE,
    PAPER,
    PLAIN,
    PRESETS,
    REMEDIES,
    SEARCH_SEED,
    SECOND,
    WIDER,
    preset,
    searches,
)
from accuracy_results import Results, key_of

RESULTS = pathlib.Path(__file__).with_name("results") / "accuracy.jsonl"
LAST = 3  # the validations at the end of a run whose mean chooses the learning rate
VALIDATION, TEST = 1000, 10000  # images of these parts that are used, at most
EVALUATION_BATCH = 500


def selected(only, jobs):
    """The runs, a list of settings, that pass all filters: `field=value`, or a text in any value."""
    fields = dict.fromkeys(field for settings in jobs for field in settings)
    for condition in only:
        field, equals, value = condition.partition("=")
        if not equals:
            jobs = [settings for settings in jobs if any(condition in str(v) for v in settings.values())]
        elif field in fields:
            jobs = [settings for settings in jobs if field in settings and str(settings[field]) == value]
        else:
            raise SystemExit(f"--only {condition}: no such field; there are {', '.join(fields)}")
    return jobs


# The learning rate


def score(line):
    """What chooses the learning rate: accuracy of the final exit on validation images, end of the run."""
    return -1.0 if line["diverged"] else float(np.mean(line["validation"]["final"][-LAST:]))


def chosen_rate(settings, lines, rates=None):
    """The best rate for a run by the search, or `None` while the search is not finished."""
    found = [lines.get(key_of(searched)) for searched in searches(settings, rates)]
    if None in found:
        return None
    return max(found, key=score)["settings"]["rate"]


def resolved(settings, lines, rates=None):
    """The settings with their learning rate, `None` while it is not known."""
    if settings["rate"] is not None:
        return settings
    rate = chosen_rate(settings, lines, rates)
    return None if rate is None else {**settings, "rate": rate}


# One run


def build(network, **arguments):
    import keras_exitens as kx
    from keras_exitens.applications.resnet import build_resnet

    channels = (64, 128, 256, 512)
    shallow = {"classifier_activation": "softmax", **arguments}
    if network == "ResNet10":
        return build_resnet((1, 1, 1, 1), channels, name="resnet10", **shallow)
    if network == "ResNeXt14":
        return build_resnet((1, 1, 1, 1), channels, expansion=1, groups=4, name="resnext14", **shallow)
    if network == "WideResNet10_2":
        return kx.applications.WideResNet(10, 2, **arguments)
    return getattr(kx.applications, network)(**arguments)


@functools.lru_cache(maxsize=2)
def images_of(dataset, data_dir=None):
    """A dict from part to `(uint8 images, labels)`, the number of classes, and the usual augmentation.

    `"validation"` is looked at after each epoch, `"screening"`, the rest of these images, at the end alone.
    """
    if dataset == "glyphs":
        import glyphs

        found, classes, mirror = glyphs.load(data_dir), len(glyphs.CHARACTERS), False
    else:
        from keras_exitens.data import parts, sources

        read = sources.read(dataset, data_dir)
        rows = parts.cut(len(read.train_images), validation=0.1, calibration=0.1, seed=0)
        found = {
            part: (read.train_images[chosen], read.train_labels[chosen]) for part, chosen in rows.items()
        }
        found["test"] = read.test_images, read.test_labels
        classes, mirror = len(read.class_names), dataset not in ("digits", "mnist")
    for part, limit in (("validation", VALIDATION), ("test", TEST)):
        images, labels = found[part]
        order = np.random.RandomState(0).permutation(len(images))
        found[part] = images[order[:limit]], labels[order[:limit]]
        if part == "validation":
            found["screening"] = images[order[limit:]], labels[order[limit:]]
    return found, classes, "crop_flip" if mirror else "crop"


def pipelines(settings, data_dir=None):
    """The images of one run: training batches without end, their number an epoch, and the other parts."""
    import tensorflow as tf

    from keras_exitens.data import batches, statistics

    parts, classes, augment = images_of(settings["dataset"], data_dir)
    augment = {"auto": augment, "none": None}.get(settings["augment"], settings["augment"])
    images, labels = parts["train"]
    seed, batch = settings["seed"], settings["batch"]
    rows = np.random.RandomState(seed).permutation(len(images))[: settings["train_size"]]
    mean, std = statistics.channel_statistics(images, rows)
    images, labels = tf.constant(images[rows]), tf.constant(labels[rows])
    padding = max(1, (images.shape[1] + 4) // 8)

    def training_batch(step, chosen):
        picked = tf.gather(images, chosen)
        if augment:
            step_seed = batches.seed_pair(seed, step)
            picked = batches.crop_and_flip(picked, step_seed, padding=padding, flip=augment == "crop_flip")
        return batches.normalise(picked, mean, std), tf.gather(labels, chosen)

    def one_pass(part):
        x, y = parts[part]
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(EVALUATION_BATCH)
        return data.map(lambda x, y: (batches.normalise(x, mean, std), y)).prefetch(2)

    every = tf.range(len(rows), dtype=tf.int64)
    train = batches.shuffled_steps(every, batch, seed).map(training_batch).prefetch(2)
    return train, len(rows) // batch, one_pass, tuple(images.shape[1:]), classes


def learning_rate(settings, steps):
    import keras

    rate = settings["rate"]
    if settings["schedule"] == "cosine":
        return keras.optimizers.schedules.CosineDecay(rate, steps)
    # The paper's: divided by ten after 75, 130 and 180 of 200 epochs.
    drops = [round(steps * epoch / 200) for epoch in (75, 130, 180)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(drops, [rate / 10**i for i in range(4)])


def run(settings, data_dir=None):
    """Trains one network and returns its line for the file of results."""
    import head_candidates
    import keras
    from accuracy_methods import Listening, make

    import keras_exitens as kx

    head_candidates.add()
    began = time.perf_counter()
    keras.backend.clear_session()
    gc.collect()
    keras.utils.set_random_seed(settings["seed"])
    train, steps, one_pass, input_shape, classes = pipelines(settings, data_dir)
    backbone = build(settings["network"], input_shape=input_shape, classes=classes, width=settings["width"])
    model = kx.add_exits(backbone, settings["exits"], placement="stage", head=settings.get("head", "conv"))
    names = kx.exit_names(model)
    if settings.get("begin") == "zeros":
        for name in names[:-1]:
            kernel = model.get_layer(name).classifier.kernel
            kernel.assign(np.zeros(kernel.shape))
    objective = make(settings["method"], settings["epochs"] * steps, len(names))
    began_training, cpu = time.perf_counter(), time.process_time()

    def fit(model, objective, epochs, rate, train):
        distiller = kx.ExitEnsembleDistiller(model, objective)
        rates = learning_rate({**settings, "rate": rate}, epochs * steps)
        distiller.compile(kx.optimizers.SGD(rates, momentum=0.9, l2=settings["l2"]), metrics=["accuracy"])
        watch = watcher()
        history = distiller.fit(
            train,
            epochs=epochs,
            steps_per_epoch=steps,
            validation_data=one_pass("validation"),
            shuffle=False,
            verbose=0,
            callbacks=[watch, Listening(distiller.objective)],
        ).history
        return distiller, history, watch

    history, diverged = {}, False
    try:
        if first := settings.get("first"):
            fit(kx.add_exits(backbone, 0), make(PLAIN, first * steps, 1), first, FIRST_RATE, train)
            backbone.trainable = settings["then"] != "frozen"
            train = train.skip(first * steps)
        distiller, history, watch = fit(model, objective, settings["epochs"], settings["rate"], train)
    except FloatingPointError:
        diverged = True
    line = {
        "settings": settings,
        "exits": names,
        "diverged": diverged,
        "seconds": round(time.perf_counter() - began_training, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "multiply_adds": [int(c) for c in kx.cost(model).cumulative],
        "parameters": model.count_params(),
    }
    if not diverged:
        line["best_epoch"] = watch.epoch + 1
        line["training"] = curves(history, "")
        line["validation"] = curves(history, "val_")
        line["loss"] = {
            key.removesuffix("loss").rstrip("_") or "total": rounded(values)
            for key, values in history.items()
            if key.endswith("loss") and not key.startswith("val_")
        }
        if settings["seed"] != SEARCH_SEED:
            line["test"] = {"last": accuracies(distiller, one_pass("test"))}
            if len(images_of(settings["dataset"], data_dir)[0]["screening"][0]):
                line["screening"] = accuracies(distiller, one_pass("screening"))
            if len(names) > 1:
                line["early_exit"] = early_exit(model, one_pass)
            distiller.set_weights(watch.weights)
            line["test"]["best"] = accuracies(distiller, one_pass("test"))
    line["total_seconds"] = round(time.perf_counter() - began, 1)
    line["made_with"] = made_with()
    return line


def early_exit(model, one_pass):
    """Test accuracy and mean multiply-adds at each of `BUDGETS`, shares of the network without exits.

    Thresholds are chosen on the calibration images.
    """
    import keras_exitens as kx

    calibration, test = (kx.collect(model, one_pass(part), verbose=0) for part in ("calibration", "test"))
    cost = kx.cost(model)
    found = {}
    for budget in BUDGETS:
        allowed = budget * cost.backbone
        if allowed > cost.cumulative[0]:
            policy = kx.calibrate(calibration, cost, cost_budget=allowed / cost.cumulative[-1])
            right, spent = routed(policy, test, cost.cumulative)
            found[str(budget)] = {"accuracy": right, "multiply_adds": spent}
    return found


def routed(policy, records, cumulative):
    """Accuracy and mean multiply-adds of the rows of an `ExitRecords` by a policy, rounded to be kept."""
    exits = policy.decide(records.logits)
    right = records.logits.argmax(-1)[exits, np.arange(len(exits))] == records.labels
    return round(float(right.mean()), 5), round(float(np.asarray(cumulative)[exits].mean()))


def watcher():
    """A callback that keeps the weights of the epoch whose final exit is best on the validation images."""
    import keras

    class Best(keras.callbacks.Callback):
        epoch, accuracy, weights = -1, -1.0, None

        def on_epoch_end(self, epoch, logs=None):
            accuracy = logs["val_final_accuracy"]
            if accuracy > self.accuracy:
                self.epoch, self.accuracy, self.weights = epoch, accuracy, self.model.get_weights()

    return Best()


def rounded(values):
    return [round(float(value), 5) for value in values]


def curves(history, prefix):
    """Accuracy after each epoch for each exit and the ensemble."""
    suffix = "_accuracy"
    return {
        key.removeprefix(prefix).removesuffix(suffix): rounded(values)
        for key, values in history.items()
        if key.endswith(suffix) and key.startswith("val_") == bool(prefix)
    }


def accuracies(distiller, data):
    logs = distiller.evaluate(data, verbose=0, return_dict=True)
    return {
        k.removesuffix("_accuracy"): round(float(v), 5) for k, v in logs.items() if k.endswith("_accuracy")
    }


def made_with():
    import keras
    import tensorflow as tf

    import keras_exitens as kx

    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return {
        "keras_exitens": kx.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {threads or 'all'} threads",
    }


# Many runs


def next_run(jobs, results, rates, stack):
    """Claims the first run that can be done now.

    Returns:
        Its settings; `None` where nothing is left to do; or an int, how many runs wait for others.
    """
    lines, waiting = results.read(), 0
    for job in jobs:
        settings = resolved(job, lines, rates)
        if settings is not None and key_of(settings) in lines:
            continue
        if settings is not None and stack.enter_context(results.claim(settings)):
            return settings
        waiting += 1
    return waiting or None


def work(jobs, results, rates, do, limit=None, pause=10.0):
    """Does the runs that are not done; returns how many are left when it stops.

    Args:
        jobs: list of settings.
        results: a `Results`.
        rates: learning rates of the search, `None` for `RATES`.
        do: function from settings to a line.
        limit: int, stops after so many runs.
        pause: seconds between looks at what other processes have finished.
    """
    done, idle = 0, 0
    while limit is None or done < limit:
        with contextlib.ExitStack() as stack:
            settings = next_run(jobs, results, rates, stack)
            if isinstance(settings, dict):
                line = do(settings)
                results.append(line)
                done, idle = done + 1, 0
                say(line)
                continue
        if settings is None:
            return 0
        # Other processes are at the rest, or at the search that it waits for. A run takes minutes at most.
        idle += pause
        if idle > 3600 or pause == 0:
            return settings
        time.sleep(pause)
    return len(jobs) - count_done(jobs, results.read(), rates)


def count_done(jobs, lines, rates=None):
    settings = (resolved(job, lines, rates) for job in jobs)
    return sum(s is not None and key_of(s) in lines for s in settings)


def say(line):
    s = line["settings"]
    what = f"{s['dataset']} {s['network']} {s['method']} seed {s['seed']} rate {s['rate']:g}"
    if line["diverged"]:
        found = "diverged"
    else:
        found = ", ".join(f"{name} {values[-1]:.3f}" for name, values in line["validation"].items())
        found += f"; training {line['training']['final'][-1]:.3f}"
    print(f"{what}: validation {found} ({line['total_seconds']:.0f} s)", flush=True)


MORE = 75  # exit code of a process that stopped at its limit


def supervise(processes, arguments, runs_each=20):
    """Keeps so many processes at work, new ones in turn: TensorFlow's memory grows with every graph.

    Returns:
        The exit code: 0, or that of a process that failed.
    """
    command = [sys.executable, __file__, *arguments, "--processes", "0", "--limit", str(runs_each)]
    alive = set()

    def stop(*_):
        for process in alive:
            process.terminate()
        sys.exit(1)

    def keep_one_at_work():
        code = MORE
        while code == MORE:
            process = subprocess.Popen(command)
            alive.add(process)
            code = process.wait()
            alive.remove(process)
        return code

    signal.signal(signal.SIGTERM, stop)
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        return max(abs(code) for code in pool.map(lambda _: keep_one_at_work(), range(processes)))


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    several = functools.partial(parser.add_argument, type=lambda text: text.split(","))
    parser.add_argument("--preset", default="main", choices=PRESETS)
    several("--dataset", dest="datasets", help="one or several, with commas: glyphs,fashion_mnist")
    several("--networks", help=", ".join(dict.fromkeys([*EVERY, *WIDER])))
    several("--methods", help=", ".join(PAPER + REMEDIES + SECOND))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--rates", type=lambda text: [float(rate) for rate in text.split(",")])
    parser.add_argument("--train-size", type=int, help="training images")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--augment", choices=("auto", "crop_flip", "crop", "none"))
    parser.add_argument("--only", action="append", default=[], help="field=value, or a text in any value")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--processes", type=int, default=1, help="how many work at once; 0: this one alone")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process; 0: all cores")
    parser.add_argument("--limit", type=int, help="stop after so many runs")
    parser.add_argument("--list", action="store_true", help="show the runs, and start none")
    args = parser.parse_args(arguments)
    return args


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse(arguments)
    jobs = preset(
        args.preset,
        args.datasets,
        args.networks,
        args.methods,
        args.seeds,
        args.rates,
        train_size=args.train_size,
        epochs=args.epochs,
        batch=args.batch,
        augment=args.augment,
    )
    jobs = selected(args.only, jobs)
    import glyphs

    results = Results(args.results, glyphs.cache_folder() / "claims")
    if args.list:
        lines = results.read()
        for job in jobs:
            settings = resolved(job, lines, args.rates)
            state = "done" if settings and key_of(settings) in lines else "to do"
            print(state, *(f"{key}={value}" for key, value in (settings or job).items()))
        print(f"{count_done(jobs, lines, args.rates)} of {len(jobs)} runs are done")
        return 0
    if args.processes > 0 and not args.limit:
        return supervise(args.processes, arguments)

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    left = work(jobs, results, args.rates, functools.partial(run, data_dir=args.data_dir), args.limit)
    if left and not args.limit:
        print(f"{left} runs wait for a search of the learning rate that is not among the chosen runs")
    return MORE if left and args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
