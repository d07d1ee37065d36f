"""The catalogue of methods: one file per method, with its settings (Config) and its Method."""

from mvray.methods import arcface, classifier, deepcluster, mask_rcnn, object_abn, segmenter, tagger

__all__ = ["arcface", "classifier", "deepcluster", "mask_rcnn", "object_abn", "segmenter", "tagger"]
