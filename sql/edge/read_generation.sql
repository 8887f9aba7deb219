SELECT generation, applied FROM _skerry_release
