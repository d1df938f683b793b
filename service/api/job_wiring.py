"""The parts of batch jobs, put together."""

from service.api.openai.batch_lines import JobLines
from service.api.services import Services
from service.jobs import JobDesk, JobRunner, JobWork, Limits
from service.state import StateStore


def open_jobs(services: Services, state: StateStore) -> tuple[JobDesk, JobRunner]:
    """The desk, and a runner that is yet to be started."""
    settings = services.settings
    desk = JobDesk(
        state,
        max_file_bytes=settings.max_file_bytes,
        max_total_file_bytes=settings.max_total_file_bytes,
        max_active=settings.max_active_jobs,
    )
    limits = Limits(max_lines=settings.max_job_lines, max_line_bytes=settings.max_body_bytes)
    runner = JobRunner(
        desk.jobs,
        desk.files,
        JobWork(desk.jobs, desk.files, JobLines(services), limits),
        services.metrics,
        workers=settings.job_workers,
        lease_s=settings.job_lease_s,
        keep_s=settings.keep_files_s,
        stopping=lambda: services.lifecycle.stopping,
    )
    desk.on_news = runner.wake
    return desk, runner
