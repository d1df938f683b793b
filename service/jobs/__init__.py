"""Durable batch jobs: files of requests, answered in the background, through any number of crashes exactly once."""

from service.jobs.files import FileStore, FileWriter
from service.jobs.line_handler import Answer, LineHandler, LineRequest
from service.jobs.records import FileRecord, Job, LineFault, Status
from service.jobs.runner import JobRunner
from service.jobs.store import JobStore
from service.jobs.use_cases import Idempotency, JobDesk
from service.jobs.work import JobWork, Limits

__all__ = [
    "Answer",
    "FileRecord",
    "FileStore",
    "FileWriter",
    "Idempotency",
    "Job",
    "JobDesk",
    "JobRunner",
    "JobStore",
    "JobWork",
    "Limits",
    "LineFault",
    "LineHandler",
    "LineRequest",
    "Status",
]
