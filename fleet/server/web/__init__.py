"""The operator's page: drawn by the server, readable without JavaScript, kept live by a small script of our own.

Always true
 1. It draws what the views and stores of the API return, and asks no table itself.
 2. What it changes goes through the API's own endpoints, so that rules, roles and the audit log are the same.
 3. Nothing on it comes from elsewhere, and no script or style runs that is not one of our two files.
 4. No page reads all devices, or all members of a rollout.
"""
