#!/usr/bin/env python3
"""Writes nonlinear.json: truncation, ReLU, square and polynomial on shares, from the equations alone.

Plain integers and no code of the crate. Hash outputs of labels, OT and OLE shares are inputs here, drawn at random, so that the
vectors fix the algebra of the gadgets and not the primitives below them. Values are little: their sums and
products are checked against plain arithmetic before they are written.

    python3 make_vectors_nonlinear.py          # writes nonlinear.json beside itself
"""
import json
import pathlib
import random

P = 2**60 - 2**18 + 1
draw = random.Random(20)


def element():
    return draw.randrange(P)


def centred(x):
    x %= P
    return x - P if x > P // 2 else x


def truncate(x, f, bound_bits, c):
    """Both shares of x after a truncation by f bits, the server's as a negative integer."""
    bound = 1 << bound_bits
    d = (x - c) % P
    client = ((c + bound) % P) >> f
    server = -(((P - d) % P) >> f) - (bound >> f)
    return d, client, server


def truncation_cases():
    cases = []
    for f, bound_bits in ((0, 12), (1, 12), (8, 23), (13, 27), (20, 40)):
        unit, bound = 1 << f, 1 << bound_bits
        edges = [0, 1, -1, unit - 1, -unit, -unit - 1, bound - unit, unit - bound]
        shares = [element() for _ in edges] + [0, 1, P - 1]
        edges += [5 * unit + 3, -5 * unit - 3, 0]
        for x, c in zip(edges, shares):
            d, client, server = truncate(x, f, bound_bits, c)
            # The three last shares are chosen, and may be where the sum wraps.
            if client + server not in (x >> f, (x >> f) + 1):
                continue
            m = bound_bits - f + 1
            low = (client + server) % (1 << m)
            cases.append({
                "truncate": f, "bound_bits": bound_bits, "x": x, "c": c, "d": d, "client": client, "server": server,
                "sign_bits": m, "client_bits": client % (1 << m), "server_bits": server % (1 << m),
                "negative": low >> (m - 1),
            })
            assert (low >> (m - 1)) == (1 if client + server < 0 else 0)
    return cases


def relu_cases():
    cases = []
    for x in [0, 1, -1, 2**15 - 1, -(2**15)] + [draw.randrange(-(2**15), 2**15) for _ in range(15)]:
        for colour in (0, 1):
            c = draw.randrange(2**52)
            d = (x - c) % P
            keep = 1 if x >= 0 else 0
            pick = keep ^ colour
            h0, h1, u = element(), element(), element()
            v = (colour * c - u) % P
            kept = ((h0 - h1 - 2 * v) % P, (v - h0) % P)
            row = (kept[0] + (1 - 2 * colour) * d) % P
            server = (kept[1] + colour * d) % P
            known = h1 if pick else h0
            client = (known + pick * (row + c) + (1 - 2 * pick) * u) % P
            assert centred(client + server) == max(x, 0)
            cases.append({
                "x": x, "c": c, "d": d, "colour": colour, "pick": pick, "h0": h0, "h1": h1, "u": u, "v": v,
                "keep_row": kept[0], "keep_share": kept[1], "row": row, "client": client, "server": server,
            })
    return cases


def square_cases():
    cases = []
    for x in [0, 1, -1, 2**14, -(2**14)] + [draw.randrange(-(2**14), 2**14) for _ in range(15)]:
        c = draw.randrange(2**52)
        d, d0, u = (x - c) % P, element(), element()
        v = (c * d0 - u) % P
        opened = (d - d0) % P
        client = (c * c + 2 * (c * opened + u)) % P
        server = (d * d + 2 * v) % P
        assert centred(client + server) == x * x
        cases.append({"x": x, "c": c, "d": d, "d0": d0, "u": u, "v": v, "opened": opened, "client": client, "server": server})
    return cases


def polynomial_cases():
    cases = []
    for x in [0, 1, -1, 2**12, -(2**12)] + [draw.randrange(-(2**12), 2**12) for _ in range(15)]:
        a, b, k = draw.randrange(-(2**9), 2**9), draw.randrange(-(2**18), 2**18), draw.randrange(-(2**30), 2**30)
        c = draw.randrange(2**52)
        d, d0, u_square, u_cross = (x - c) % P, element(), element(), element()
        v_square = (c * c * a - u_square) % P
        v_cross = (c * d0 - u_cross) % P
        opened = (2 * a * d + b - d0) % P
        client = (u_square + c * opened + u_cross) % P
        server = (v_square + v_cross + a * d * d + b * d + k) % P
        assert centred(client + server) == a * x * x + b * x + k
        cases.append({
            "x": x, "a": a, "b": b, "k": k, "c": c, "d": d, "d0": d0, "factors": [a % P, d0], "inputs": [c * c % P, c],
            "u": [u_square, u_cross], "v": [v_square, v_cross], "opened": opened, "client": client, "server": server,
        })
    return cases


def rows(cases):
    return "[\n" + ",\n".join("    " + json.dumps(case) for case in cases) + "\n  ]"


if __name__ == "__main__":
    parts = {
        "truncation": truncation_cases(), "relu": relu_cases(), "square": square_cases(), "polynomial": polynomial_cases(),
    }
    body = ",\n".join(f'  "{name}": {rows(cases)}' for name, cases in parts.items())
    text = "{\n" + f'  "p": {P},\n' + body + "\n}\n"
    pathlib.Path(__file__).with_name("nonlinear.json").write_text(text)
