from isocenter import errors as errors
from isocenter.core.errors import BadInput as BadInput
from isocenter.core.errors import DeadlineExceeded as DeadlineExceeded
from isocenter.core.errors import Draining as Draining
from isocenter.core.errors import IsocenterError as IsocenterError
from isocenter.core.errors import ModelFault as ModelFault
from isocenter.core.errors import NotReady as NotReady
from isocenter.core.errors import Overloaded as Overloaded
from isocenter.core.errors import Refused as Refused
from isocenter.core.errors import SetupError as SetupError
from isocenter.core.errors import UnknownModel as UnknownModel
from isocenter.service import Service as Service
from isocenter.service import SyncService as SyncService
from isocenter.serving.embedded import Answer as Answer

__version__: str
__all__: list[str]
