"""HTTP: REST under `/api/v1` for operators, enrolment and artifacts for devices."""
