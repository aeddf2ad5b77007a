"""Words and pages: the findings as one folder that can be sent to a colleague.

pages            what all pages share: templates, figures inlined, files written whole
drawings         figures, drawn once and placed in pages
study_page       the report on one model
comparison_page  the report on several
training_page    the report on the checkpoints of one training run
sections         what belongs to a question: finding, estimand, unit, interval, n
findings         the answer to each question, computed from the tables
claim_rows       claims as rows of a table, grouped by the question that they answer
head_map         a map of the heads that is coloured, filtered and read without a script
summary, facts   the answer at the top, the model and the commands
words, glossary  numbers and verdicts in words, terms in one sentence each
"""

from posprobe.report.comparison_page import write_comparison
from posprobe.report.pages import output_folder
from posprobe.report.study_page import write_report
from posprobe.report.training_page import write_training

__all__ = ["output_folder", "write_comparison", "write_report", "write_training"]
