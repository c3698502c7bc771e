"""The membership service: who is in a group, and what became of interrupted operations.

`core` decides, and touches neither socket nor clock; `server` puts it on the network; `process`
runs it beside a test or a demo.
"""
