"""What is stored, read back as the model that it stands for; ``formats/`` says how each layout does it."""

from qexport.artifacts.artifact import Opened
from qexport.artifacts.layout import ArtifactLayout

__all__ = ["ArtifactLayout", "Opened"]
