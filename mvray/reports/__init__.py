"""What people see of a job: tables, pages, figures, sheets, its runs in MLflow."""

from mvray.reports import class_maps, figures, page, search_figures, search_table
from mvray.reports.mlflow_runs import RunLog
from mvray.reports.results import collect, comparison, means, pictures
from mvray.reports.web_page import web_page

__all__ = [
    "RunLog",
    "class_maps",
    "collect",
    "comparison",
    "figures",
    "means",
    "page",
    "pictures",
    "search_figures",
    "search_table",
    "web_page",
]
