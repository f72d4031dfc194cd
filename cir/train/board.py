"""TensorBoard: what a run shows while it trains, and what a cell of an ablation leaves for the HPARAMS tab.

train/loss, train/lr, ...            logged steps
val/BENCHMARK/METRIC                 evaluations during training
ranked/BENCHMARK                     ranked images of a few queries, at the same steps
final/BENCHMARK/METRIC               a finished cell's metrics, beside the settings it varies

Events go through TensorBoard's own writer and messages; torch is not needed. A resumed run begins a file that says from
which step on the earlier ones are void, so that every step is there once.
"""

import io
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = "tensorboard"
"""Of a run: where its events lie."""
HPARAMS = "events.out.tfevents.9999999999.hparams"
"""A fixed name: written again, the file is replaced; sorted last, as TensorBoard reads a folder in order, once."""
QUALITY = 85
"""Of the JPEG that a picture is kept as: photos take a fifth of a PNG's space."""


class Board:
    """The event file of one run in one process; a context manager, closed when the run ends."""

    def __init__(self, run: Path, step: int) -> None:
        """Open a file in the run's folder; whatever earlier files say of steps after `step` is void."""
        from tensorboard.compat.proto.event_pb2 import SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        _next_second(run / FOLDER)
        self._writer = EventFileWriter(str(run / FOLDER))
        self._writer.add_event(_event(step + 1, session_log=SessionLog(status=SessionLog.START)))

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add values by name: loss terms and the like, or `benchmark:metric` in percent."""
        self._writer.add_event(_event(step, summary=_scalars({tag(name): value for name, value in values.items()})))

    def pictures(self, pictures: Mapping[str, Image.Image], step: int) -> None:
        """Add a picture per benchmark."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, picture in pictures.items():
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=QUALITY)
            image = Summary.Image(
                width=picture.width, height=picture.height, colorspace=3, encoded_image_string=buffer.getvalue()
            )
            summary = Summary(value=[Summary.Value(tag=f"ranked/{name}", image=image)])
            self._writer.add_event(_event(step, summary=summary))

    def flush(self) -> None:
        """Wait for the thread that writes: a kill behind a snapshot must leave no gap that no resumed run fills."""
        self._writer.flush()


def _next_second(folder: Path) -> None:
    """Wait until an event file gets a later name than those that are there: names hold the second, then the process.

    TensorBoard reads files in the order of their names; a run resumed within the second in which it started would be
    read before it or after it by chance.
    """
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*") if path.name != HPARAMS]
    newest = max((int(second) for second in seconds if second.isdigit()), default=0)
    time.sleep(max(0.0, min(newest + 1 - time.time(), 2.0)))


def tag(name: str, group: str = "val") -> str:
    """Say under which tag a value is shown.

    >>> tag("loss"), tag("world/circo/val:mAP@5")
    ('train/loss', 'val/world/circo/val/mAP@5')
    """
    benchmark, colon, metric = name.rpartition(":")
    return f"{group}/{benchmark}/{metric}" if colon else f"train/{name}"


def hparams(run: Path, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> Path:
    """Leave in a finished cell's folder what varies and what came out; returns the file, replaced when written again.

    `settings` are all keys that the ablation varies, the same keys in all of its cells: TensorBoard reads the columns
    from any one of them. `metrics` are values by `benchmark:metric`, in percent. Runs that lie in one folder
    (`CELL/seed-0`, `CELL/seed-1`) are one row of the table, repeated trials whose metrics are averaged.
    """
    from tensorboard.plugins.hparams import summary_v2
    from tensorboard.summary.writer.record_writer import RecordWriter

    plain = {name: _plain(value) for name, value in settings.items()}
    finals = {tag(name, "final"): value for name, value in metrics.items()}
    cell = run.resolve().parent
    trial = f"{cell.name} ({cell.parent.name})"  # cells of two ablations may share a name, and must not be averaged
    messages = [_columns(plain, finals), summary_v2.hparams_pb(plain, trial), _scalars(finals), _ended()]
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    for event in (_event(0, file_version="brain.Event:2"), *(_event(0, summary=message) for message in messages)):
        writer.write(event.SerializeToString())
    path = run / FOLDER / HPARAMS
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".hparams.{os.getpid()}")  # not named as events are: a reader must not take it up
    staged.write_bytes(buffer.getvalue())
    os.replace(staged, path)
    return path


def _columns(settings: Mapping[str, bool | float | str], finals: Mapping[str, float]) -> Any:
    """Declare the table's columns; without it, TensorBoard takes every loss and rate for a result."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2, summary_v2
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG

    kinds = {bool: api_pb2.DATA_TYPE_BOOL, float: api_pb2.DATA_TYPE_FLOAT64, str: api_pb2.DATA_TYPE_STRING}
    inputs = [api_pb2.HParamInfo(name=name, type=kinds[type(value)]) for name, value in settings.items()]
    outputs = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in finals]
    experiment = api_pb2.Experiment(hparam_infos=inputs, metric_infos=outputs)
    return summary_v2._summary_pb(EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment))


def _ended() -> Any:
    """Say that the session is over, and well."""
    from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2, summary_v2
    from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG

    info = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
    return summary_v2._summary_pb(SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=info))


def _plain(value: Any) -> bool | float | str:
    """Turn a setting into what a column can hold: truth, number or text; lists and the like as JSON."""
    if isinstance(value, bool | str):
        return value
    return float(value) if isinstance(value, int | float) else json.dumps(value)


def _scalars(values: Mapping[str, float]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def _event(step: int, **content: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event

    return Event(wall_time=time.time(), step=step, **content)
