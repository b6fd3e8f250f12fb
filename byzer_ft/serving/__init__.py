"""Requests -> answers: the protocol of model functions, the engines beside a GPU, and the Ray Serve applications.

`protocol` and `spec` import neither torch nor ray; `client` (what a session uses) imports ray inside its methods;
`app` and `engine` run in replicas.
"""
