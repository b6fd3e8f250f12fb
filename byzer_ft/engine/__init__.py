"""load, select, save -> Parquet files, session views, Arrow tables. Knows nothing of models, jobs or serving.

`SparkEngine` is the one door; `Models` and `Answers` are what it wants of whoever can answer a model call. Importing
this package loads nothing heavy.
"""

from byzer_ft.engine.built_ins import BUILT_INS
from byzer_ft.engine.engine import SparkEngine
from byzer_ft.engine.models import Answers, Models
from byzer_ft.engine.references import references

__all__ = ["BUILT_INS", "Answers", "Models", "SparkEngine", "references"]
