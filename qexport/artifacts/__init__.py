"""What is stored, read back as the model that it stands for; ``formats/`` says how each layout does it."""

from qexport.artifacts.artifact import Artifact
from qexport.artifacts.layout import ArtifactLayout

__all__ = ["Artifact", "ArtifactLayout"]
