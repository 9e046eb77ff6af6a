"""The error classes of this project. Each message says where, what was found, what was expected and what to do."""


class RefsegError(Exception):
    """The data or the run is wrong; the command line prints the message and exits with 1."""

    exit_code = 1


class UsageError(RefsegError):
    """The call is wrong: an option, a name, or a path where nothing exists; the command line exits with 2."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe holds unknown keys or wrong values; the message lists all of them with their key paths."""


class AnnotationError(RefsegError):
    """An annotation file or record is missing, damaged or contradictory."""


class ImageError(RefsegError):
    """An image is missing, truncated, not a JPEG, or of another size than annotated."""


class MissingImageError(ImageError, UsageError):
    """Nothing exists at the path where an image is expected."""


class DownloadError(RefsegError):
    """A file cannot be downloaded, or is not the one that was expected."""


class BuildError(RefsegError):
    """A build cannot start, resume or finish."""


class WorkerError(BuildError):
    """A process or machine that built a part ended early; the data are not the cause. The same command resumes."""


class DatasetError(RefsegError):
    """A built dataset is incomplete, damaged, of another format, or made with another tokenizer."""


class MissingDatasetError(DatasetError, UsageError):
    """Nothing exists at the path or URL where a dataset is expected."""


class PredictionError(RefsegError):
    """Predicted masks are missing, cannot be read, or do not have the image's size."""


class CheckpointError(RefsegError):
    """A checkpoint is missing, incomplete, or does not fit the model or the dataset."""


class MissingCheckpointError(CheckpointError, UsageError):
    """Nothing exists at the path where a run, a checkpoint or a weight file is expected."""


class ResultsError(RefsegError):
    """Results of an evaluation are missing, damaged, or do not belong together."""


class TrainingError(RefsegError):
    """A training or evaluation run cannot start or continue."""


class PreemptedError(RefsegError):
    """A run was asked to stop (SIGTERM) and has saved its work; exit code 75 means "try again"."""

    exit_code = 75


class StorageError(RefsegError, OSError):
    """Remote storage refused a request, or failed on every try.

    Its arguments are those of an `OSError`: errno, what failed and what to do, URL. Code that handles `OSError`
    therefore handles this error, too.
    """

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"
