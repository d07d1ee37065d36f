"""The catalogue of segmenters: one file each, SegmenterConfig and Segmenter."""
