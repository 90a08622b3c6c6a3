"""What joins the parts: the only library modules that know more than one of profilers, costmodel, surrogate, search."""
