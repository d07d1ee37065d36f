"""Readers of the public layouts of data sets."""

from mvray.data.readers.animeface import AnimeFace
from mvray.data.readers.base import FileSource, PictureSource, VideoSource
from mvray.data.readers.coco import COCO
from mvray.data.readers.folder import Folder
from mvray.data.readers.identities import Identities
from mvray.data.readers.manga109 import Manga109
from mvray.data.readers.manga109_faces import Manga109Faces
from mvray.data.readers.pairs import Pairs
from mvray.data.readers.ucf101 import UCF101
from mvray.data.readers.videos import SUFFIXES, Videos
from mvray.data.readers.voc2012 import VOC2012

__all__ = [
    "COCO",
    "SUFFIXES",
    "UCF101",
    "VOC2012",
    "AnimeFace",
    "FileSource",
    "Folder",
    "Identities",
    "Manga109",
    "Manga109Faces",
    "Pairs",
    "PictureSource",
    "VideoSource",
    "Videos",
]
