"""Names in single backticks: those that the API reference has become links, all others are code.

A docstring names what it means as its reader would (`decompose`, `ActivationStore.read`), wherever
that is defined, and it names parameters and columns too, which have no page.
"""

from sphinx.util.nodes import make_refnode

TOP = ("class", "exception", "function", "data", "module")


def find(target, objects, module="posprobe"):
    """What a name means among the documented objects, or None.

    A plain word may be a parameter, so it means an object of the same room or of `posprobe` only.

    Examples
    --------
    >>> from collections import namedtuple
    >>> Entry = namedtuple("Entry", "objtype node_id")
    >>> objects = {"a.b.Store": Entry("class", "1"), "a.b.Store.read": Entry("method", "2")}
    >>> objects["a.b.limit"] = Entry("function", "3")
    >>> [found and found.node_id for found in (find("Store", objects), find("limit", objects))]
    ['1', None]
    >>> find("a.Store.read", objects).node_id, find("limit", objects, "a.b").node_id
    ('2', '3')
    """
    *path, name = target.split(".")
    member = bool(path) and not path[-1].islower()
    ending = f"{path[-1]}.{name}" if member else name
    kinds = ("method", "attribute", "property") if member else TOP
    found = {known for known, entry in objects.items() if entry.objtype in kinds}
    if target.isalpha() and target.islower():
        found &= {f"posprobe.{name}", f"{module}.{name}"}
    found = {objects[known].node_id: objects[known] for known in found if ends(known, ending)}
    return next(iter(found.values())) if len(found) == 1 else None


def ends(known, ending):
    """Whether a full name ends with these whole parts."""
    return f".{known}".endswith(f".{ending}")


def resolve(app, env, node, contnode):
    """Link to the object that a name in single backticks means, or leave it as code."""
    if node.get("refdomain") != "py" or node.get("reftype") != "obj":
        return None
    objects = env.domains.python_domain.objects
    entry = find(node["reftarget"].strip("()"), objects, node.get("py:module"))
    if entry is None:
        return contnode
    home = node["refdoc"], entry.docname, entry.node_id
    return make_refnode(app.builder, *home, contnode, node["reftarget"])


def setup(app):
    """Register with Sphinx."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
