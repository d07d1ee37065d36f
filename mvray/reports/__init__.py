"""What people see of a job: tables, pages, figures, sheets, its runs in MLflow."""

from mvray.reports import figures, page, search_figures, search_table
from mvray.reports.mlflow_runs import RunLog, outbox_folder, refuge, tracking_uri, where_tracked
from mvray.reports.page import PAGE
from mvray.reports.results import collect, comparison, means, pictures

__all__ = [
    "PAGE",
    "RunLog",
    "collect",
    "comparison",
    "figures",
    "means",
    "outbox_folder",
    "page",
    "pictures",
    "refuge",
    "search_figures",
    "search_table",
    "tracking_uri",
    "where_tracked",
]
