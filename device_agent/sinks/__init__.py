"""Where answers go: a file, a topic, a webhook. One module each, behind the protocol in `delivery.py`.

A sink runs in the process of the source that it takes answers of.
"""
