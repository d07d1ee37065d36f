"""Readers of the public layouts of data sets."""

from mvray.data.readers.animeface import AnimeFace
from mvray.data.readers.base import FileSource, PictureSource, VideoSource
from mvray.data.readers.folder import Folder
from mvray.data.readers.identities import Identities
from mvray.data.readers.manga109 import Manga109
from mvray.data.readers.manga109_faces import Manga109Faces
from mvray.data.readers.ucf101 import UCF101
from mvray.data.readers.videos import SUFFIXES, Videos

__all__ = [
    "SUFFIXES",
    "UCF101",
    "AnimeFace",
    "FileSource",
    "Folder",
    "Identities",
    "Manga109",
    "Manga109Faces",
    "PictureSource",
    "VideoSource",
    "Videos",
]
