"""The one error tree.

::

    DefectLensError
    ├── InputError                  the caller can mend it (exit code 2)
    │   ├── DataError               a data set or folds file cannot be used; lists every problem at once
    │   ├── SettingsError           an option or a combination of options is not possible
    │   │   └── TooFewImagesError   a bound needs more images than there are; says how many are missing
    │   ├── BundleError             a bundle is damaged, truncated, foreign or of another version
    │   ├── EmptyRequestError       a request without an image
    │   ├── ImageError              pixels that cannot be read
    │   │   ├── NotAnImageError
    │   │   ├── TruncatedImageError
    │   │   ├── UnsupportedFormatError
    │   │   ├── ImageTooLargeError
    │   │   └── RawSizeError        raw pixels whose size does not fit width, height and stride
    │   ├── SharedMemoryError       shared memory cannot be had, or does not hold the frame
    │   ├── UnknownClassError       saliency was asked for a class that the model does not have
    │   ├── WrongModelError         a request names another model than the one served
    │   └── NotAuthorizedError      the token for it is missing or wrong
    ├── DeadlineError               the answer would come after the caller's deadline
    ├── OverloadedError             a bounded queue is full, or too much work is in front; says when to try again
    ├── SupersededError             a newer frame of a live camera took the place of this one
    ├── StationStoppedError         the station's last check with master parts failed
    ├── ShuttingDownError           the server drains and takes no new frames
    ├── UnreachableError            no inspection server answers at the address
    ├── ProviderError               the execution provider asked for is not to be had
    ├── ParityError                 two runtimes disagree on the same pixels
    ├── AuditError                  an answer could not be recorded, or the audit store is not as it was written
    └── TrainingError               training cannot go on (a loss that is not finite, a checkpoint of another run)

Every message says what was wrong, what was got, and how to mend it.
"""

from __future__ import annotations

from collections.abc import Sequence


class DefectLensError(Exception):
    """Root of every error that this product raises on purpose."""


class InputError(DefectLensError):
    """The caller's input cannot be used."""


class DataError(InputError):
    """A data set cannot be used; ``problems`` holds one line for each problem found."""

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__("\n  - ".join([summary, *self.problems]))


class SettingsError(InputError):
    """An option, or a combination of options, is not possible."""


class TooFewImagesError(SettingsError):
    """Too few images (or lots) for the bound that was asked for; ``missing``: how many more are, if known."""

    def __init__(self, message: str, missing: int | None = None) -> None:
        self.missing = missing
        super().__init__(message)


class BundleError(InputError):
    """A bundle is refused."""


class EmptyRequestError(InputError):
    """A request carries no image."""


class ImageError(InputError):
    """Pixels cannot be read."""


class NotAnImageError(ImageError):
    """The bytes are no image of any known format."""


class TruncatedImageError(ImageError):
    """The image ends before its last pixel."""


class UnsupportedFormatError(ImageError):
    """An image format or pixel layout that is not supported."""


class ImageTooLargeError(ImageError):
    """More pixels than the limit allows; checked before anything is decoded."""


class RawSizeError(ImageError):
    """The number of raw bytes does not fit width, height, stride and pixel format."""


class SharedMemoryError(InputError):
    """Memory cannot be shared, is not shared any more, or does not hold the frame."""


class UnknownClassError(InputError):
    """A class name that the model does not have."""


class WrongModelError(InputError):
    """The request names another model than the one that is served."""


class NotAuthorizedError(InputError):
    """Only who has the server's token may do this."""


class DeadlineError(DefectLensError):
    """The deadline has passed, or passes before an answer can be made."""


class OverloadedError(DefectLensError):
    """A bounded queue is full, or the work in it leaves no time for the frame.

    ``retry_after_s``: when there should be room, in seconds from now, as far as the server can tell.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class SupersededError(DefectLensError):
    """A newer frame of the same live camera took the place of this one before its inference began."""


class StationStoppedError(DefectLensError):
    """The station's last check with master parts failed, and nobody has overridden that."""


class ShuttingDownError(DefectLensError):
    """The server drains and takes no new frames."""


class UnreachableError(DefectLensError):
    """No inspection server answers at the address."""


class ProviderError(DefectLensError):
    """The execution provider asked for is not to be had."""


class ParityError(DefectLensError):
    """Two runtimes, or a runtime and its golden frames, disagree."""


class AuditError(DefectLensError):
    """What has to be recorded cannot be, or the audit store cannot be read or is not as it was written."""


class TrainingError(DefectLensError):
    """Training cannot start or go on."""
