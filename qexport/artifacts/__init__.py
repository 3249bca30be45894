"""Reading artifacts back: any format, ours or others', as the model that it stands for."""

from qexport.artifacts.artifact import Artifact, Kind
from qexport.artifacts.opening import open_artifact

__all__ = ["Artifact", "Kind", "open_artifact"]
