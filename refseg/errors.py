"""The one tree of errors: where, what was found, what was expected, what to do."""


class RefsegError(Exception):
    """The data or the run is at fault; the command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(RefsegError):
    """The call is at fault: an option, a name, a path where nothing is; the command line exits with 2."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe holds unknown keys or wrong values; the message lists all of them with their key paths."""


class AnnotationError(RefsegError):
    """An annotation file or record cannot be used as it stands."""


class ImageError(RefsegError):
    """An image is missing, truncated, not a JPEG, or of another size than annotated."""


class MissingImageError(ImageError, UsageError):
    """There is nothing at the path where an image is expected."""


class BuildError(RefsegError):
    """A build cannot start, go on or finish."""


class WorkerError(BuildError):
    """A process or machine at work on a part died; the data are not at fault, and the same command goes on."""


class DatasetError(RefsegError):
    """A built dataset is incomplete, damaged, of another format, or made with another tokenizer."""


class MissingDatasetError(DatasetError, UsageError):
    """There is nothing at the path or URL where a dataset is expected."""


class PredictionError(RefsegError):
    """Predicted masks that were given cannot be read, are missing, or are not of the image's size."""


class CheckpointError(RefsegError):
    """A checkpoint is missing, torn, or does not fit the model or the dataset."""


class MissingCheckpointError(CheckpointError, UsageError):
    """There is nothing at the path where a run, a checkpoint or a file of weights is expected."""


class ResultsError(RefsegError):
    """Results of an evaluation are missing, damaged, or do not belong together."""


class TrainingError(RefsegError):
    """A training or evaluation run cannot start or go on."""


class PreemptedError(RefsegError):
    """A run was asked to leave its machine and has saved its work; exit code 75: try again."""

    exit_code = 75


class StorageError(RefsegError, OSError):
    """Storage refuses, or fails also when asked again.

    Made like an `OSError` of (errno, what failed and what to do, URL), so that who handles those handles this too.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"
