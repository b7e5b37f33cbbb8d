"""The device agent: runs bundles, updates itself, reports.

`supervisor` is the process that stays up; it never imports numpy or an engine. `worker` is one process per
deployment; it loads the bundle and answers inference requests.
"""
