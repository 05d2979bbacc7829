"""One HTML page about runs and the bundles made of them: `edgeft report`."""
