"""Kills a training at random moments, resumes it each time, and compares it bit for bit with one left alone.

`examples/train.py` trains on real digits, in float32 with deterministic operations, with backups every few
steps. From outside, it gets SIGKILL at a random moment after it began an epoch: in the middle of a step, of a
validation, of a backup or while TensorFlow still traces; it is started again with --resume, and so on. At the
end, all weights, optimizer variables and states of last.keras are compared with those of a run that nobody
killed, and the history of all epochs too.

    python benchmarks/kill_points.py
    python benchmarks/kill_points.py --kills 100 --seed 1 --json mine.json
"""

import argparse
import csv
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile

HERE = pathlib.Path(__file__).parent
TRAIN = ["--data", "digits", "--network", "WideResNet16_4", "--width", "0.0625", "--exits", "2"]


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=60, help="enough to outlast the last kill")
    parser.add_argument("--every", type=int, default=7, help="steps between backups")
    parser.add_argument("--longest", type=float, default=15.0, help="seconds after the first epoch line")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=pathlib.Path, default=HERE / "results" / "kill_points.json")
    return parser.parse_args(arguments)


def start(args, folder, resume=False):
    """Starts the training as a user would."""
    command = [sys.executable, "-u", str(HERE.parent / "examples" / "train.py"), *TRAIN, "--batch", "64"]
    if resume:
        command += ["--run", str(folder), "--resume"]
    else:
        command += ["--run", str(folder), "--epochs", str(args.epochs), "--backup-every", str(args.every)]
    environment = {**os.environ, "TF_DETERMINISTIC_OPS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output = process.communicate()[0]
    if process.returncode:
        sys.exit(f"The training failed, which is what this looks for:\n{output}")


def kill(args, process, seconds):
    """SIGKILL so many seconds after the first line about an epoch; whether it came in time."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("Epoch"):
            break
    else:
        process.wait()
        sys.exit("The training failed, which is what this looks for:\n" + "".join(seen))
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return process.returncode == -signal.SIGKILL


def state(folder):
    """Every array of last.keras by its path, and the history."""
    import h5py

    found = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with zipfile.ZipFile(folder / "last.keras") as archive:
        content = archive.read("model.weights.h5")
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(keep)
    with open(folder / "history.csv", newline="") as file:
        return found, list(csv.DictReader(file))


def backed_up(path):
    """The step of a backup, by the library's own reader."""
    from keras_exitens.callbacks import backup_file

    for file in (path, backup_file.previous_of(path)):
        if file.exists():
            return backup_file.read(file)[0]["step"]
    return 0


def main():
    args = parse()
    draw = random.Random(args.seed)
    kills = []
    with tempfile.TemporaryDirectory() as folder:
        whole, cut = pathlib.Path(folder, "whole"), pathlib.Path(folder, "cut")
        finish(start(args, whole))
        while len(kills) < args.kills:
            process = start(args, cut, resume=(cut / "config.json").exists())
            seconds = draw.uniform(0, args.longest)
            if not kill(args, process, seconds):
                sys.exit(f"The run ended after {len(kills)} kills: pass more --epochs")
            partial = (cut / "backup.partial").exists()
            kills.append({"seconds": seconds, "backup": backed_up(cut / "backup"), "in_a_backup": partial})
            print(f"kill {len(kills)}: {kills[-1]}", flush=True)
        finish(start(args, cut, resume=True))
        (one, history), (other, resumed) = state(whole), state(cut)
    different = [name for name in one if name not in other or one[name].tobytes() != other[name].tobytes()]
    result = {
        "kills": kills,
        "arrays": len(one),
        "values": sum(array.size for array in one.values()),
        "arrays_that_differ": different + sorted(set(other) - set(one)),
        "epochs": len(history),
        "history_equal": history == resumed,
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1))
    same = not result["arrays_that_differ"] and result["history_equal"]
    print(
        f"{len(kills)} kills: {result['arrays']} arrays of {result['values']} values and the history of "
        f"{len(history)} epochs are {'' if same else 'NOT '}bit for bit those of the run that was left alone"
    )
    sys.exit(not same)


if __name__ == "__main__":
    main()
