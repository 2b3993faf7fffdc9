"""Network AI management and orchestration (NAMO): use case to services to tasks; pure."""
