"""One command, every protocol: protocols as data, one pass over the images, rows with intervals.

    config -> Plan (samples, protocols, methods) -> outcomes of images -> tables -> rows -> report

`run.evaluate` is the whole way; `evaluate.py` and `phrase-loc evaluate` call it.
"""
