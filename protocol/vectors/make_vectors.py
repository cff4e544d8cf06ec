#!/usr/bin/env python3
"""Test vectors of the packing, by brute force from its definition.

Nothing is shared with the implementation: a useful output reads whatever its polynomial product reads,
and a coefficient is what the outputs that read it expect there. The products are then computed and must
be the convolution; merging is the tree A + X^m B + tau(A - X^m B) of the protocol's reference, with
kernels premultiplied by 2^-merge.

    python3 make_vectors.py          # writes packing.json beside itself
"""
import json
import pathlib
import random

P = 2**60 - 2**18 + 1
rng = random.Random(20)


def poly_mul(a, b, n):
    out = [0] * n
    for i, x in enumerate(a):
        if x:
            for j, y in enumerate(b):
                if y:
                    k = i + j
                    if k < n:
                        out[k] += x * y
                    else:
                        out[k - n] -= x * y
    return [c % P for c in out]


def substitute(a, d):
    """a(X) -> a(X^d)."""
    n, out = len(a), [0] * len(a)
    for i, x in enumerate(a):
        k = i * d % (2 * n)
        out[k % n] = (x if k < n else -x) % P
    return out


def shift(a, t):
    n, out = len(a), [0] * len(a)
    for i, x in enumerate(a):
        k = (i + t) % (2 * n)
        out[k % n] = (x if k < n else -x) % P
    return out


def merge(products, group):
    n, m = len(products[0]), group // 2
    while len(products) > 1:
        half = len(products) // 2
        out = []
        for a, b in zip(products[:half], products[half:]):
            b = shift(b, m)
            total = [(x + y) % P for x, y in zip(a, b)]
            turned = substitute([(x - y) % P for x, y in zip(a, b)], n // m + 1)
            out.append([(x + y) % P for x, y in zip(total, turned)])
        products, m = out, m // 2
    return products[0]


def out_side(size, before, after, kernel, stride):
    return (size + before + after - kernel) // stride + 1


class Case:
    def __init__(self, name, degree, bundles, shape, layout, convs):
        self.name, self.n, self.bundles, self.shape = name, degree, bundles, shape
        self.layout, self.convs = layout, convs
        self.g, (self.sh, self.sw) = layout["group"], layout["stride"]
        for conv in convs:
            top, left, bottom, right = conv["padding"]
            conv["size"] = (out_side(shape[1], top, bottom, conv["kernel"][0], self.sh),
                            out_side(shape[2], left, right, conv["kernel"][1], self.sw))
        th, tw = layout["tile"]
        self.down = max(-(-c["size"][0] // th) for c in convs)
        self.across = max(-(-c["size"][1] // tw) for c in convs)
        self.virtual = shape[0] * self.sh * self.sw
        self.groups = -(-self.virtual // self.g)
        self.rows = -(-self.down * self.across * bundles // layout["blocks"])

    def tap(self, conv, c, k, l):
        """Virtual channel and flat distance of a tap: the kernel sits at the layout's padding."""
        k += self.layout["padding"][0] - conv["padding"][0]
        l += self.layout["padding"][1] - conv["padding"][1]
        channel = (c * self.sh + k % self.sh) * self.sw + l % self.sw
        return channel, k // self.sh * self.layout["row_stride"] + l // self.sw

    def outputs(self, conv):
        """(row, block, bundle, flat position, y, x) of every output of one channel."""
        th, tw = self.layout["tile"]
        for bundle in range(self.bundles):
            for y in range(conv["size"][0]):
                for x in range(conv["size"][1]):
                    tile = y // th * self.across + x // tw
                    row, block = divmod(tile * self.bundles + bundle, self.layout["blocks"])
                    yield row, block, bundle, y % th * self.layout["row_stride"] + x % tw, y, x

    def place(self, conv, o):
        """Chunk, output block and place in the merge of an output channel."""
        places = 1 << conv["merge"]
        chunk, rest = divmod(o, places * conv["output_blocks"])
        return chunk, rest // places, rest % places

    def expectations(self):
        """(ciphertext, coefficient) -> element or None for zero, from all reads."""
        found = {}
        size = self.layout["block"]
        for conv in self.convs:
            (kh, kw), (top, left) = conv["kernel"], conv["padding"][:2]
            for row, block, bundle, flat, y, x in self.outputs(conv):
                for q in range(conv["output_blocks"]):           # block the output is in
                    for other in range(conv["output_blocks"]):   # block whose kernel reaches there
                        for c in range(self.shape[0]):
                            for k in range(kh):
                                for l in range(kw):
                                    channel, distance = self.tap(conv, c, k, l)
                                    group, g = divmod(channel, self.g)
                                    at = ((block + q - other) * size + flat + distance) * self.g + g
                                    i, j = y * self.sh + k - top, x * self.sw + l - left
                                    inside = 0 <= i < self.shape[1] and 0 <= j < self.shape[2] and q == other
                                    element = None
                                    if inside:
                                        element = ((bundle * self.shape[0] + c) * self.shape[1] + i) * self.shape[2] + j
                                    key = (row * self.groups + group, at % self.n)
                                    assert found.get(key, element) == element, (self.name, key)
                                    found[key] = element
        return found

    def slots(self):
        found, seen, out = self.expectations(), set(), []
        for index in range(self.rows * self.groups):
            slots = []
            for at in range(self.n):
                if (index, at) not in found:
                    slots.append(-1)
                elif found[index, at] is None:
                    slots.append(-2)
                else:
                    element = found[index, at]
                    slots.append(2 * element + (element in seen))
                    seen.add(element)
            out.append(slots)
        return out

    def useful(self, conv):
        """Ciphertexts of an answer in order: (row, chunk) -> sorted (coefficient, element)."""
        h, w = conv["size"]
        found = {}
        for o in range(conv["out"]):
            chunk, q, place = self.place(conv, o)
            for row, block, bundle, flat, y, x in self.outputs(conv):
                at = ((block + q) * self.layout["block"] + flat) * self.g + place * (self.g >> conv["merge"])
                found.setdefault((row, chunk), []).append((at, ((bundle * conv["out"] + o) * h + y) * w + x))
        return {key: sorted(found[key]) for key in sorted(found)}

    def kernel(self, conv, weights, chunk, place, group):
        poly = [0] * self.n
        kh, kw = conv["kernel"]
        scale = pow(1 << conv["merge"], -1, P)
        for o in range(conv["out"]):
            if self.place(conv, o)[0] == chunk and self.place(conv, o)[2] == place:
                for c in range(self.shape[0]):
                    for k in range(kh):
                        for l in range(kw):
                            channel, distance = self.tap(conv, c, k, l)
                            if channel // self.g == group:
                                t = self.place(conv, o)[1] * self.layout["block"] * self.g
                                t = (t - distance * self.g - channel % self.g) % (2 * self.n)
                                weight = weights[((o * self.shape[0] + c) * kh + k) * kw + l] * scale
                                poly[t % self.n] += weight if t < self.n else -weight
        return [x % P for x in poly]

    def run(self):
        elements = self.bundles * self.shape[0] * self.shape[1] * self.shape[2]
        tensor = [rng.randrange(P) for _ in range(elements)]
        slots = self.slots()
        inputs = [[rng.randrange(P) if s == -1 else 0 if s == -2 else tensor[s // 2] for s in ct] for ct in slots]
        answers = []
        for conv in self.convs:
            kh, kw = conv["kernel"]
            weights = [rng.randint(-127, 127) for _ in range(conv["out"] * self.shape[0] * kh * kw)]
            want = self.plain(conv, weights, tensor)
            useful = self.useful(conv)
            for (row, chunk), coefficients in useful.items():
                products = []
                for place in range(1 << conv["merge"]):
                    total = [0] * self.n
                    for group in range(self.groups):
                        kernel = self.kernel(conv, weights, chunk, place, group)
                        product = poly_mul(inputs[row * self.groups + group], kernel, self.n)
                        total = [(x + y) % P for x, y in zip(total, product)]
                    products.append(total)
                packed = merge(products, self.g)
                for at, element in coefficients:
                    assert packed[at] == want[element], (self.name, at, element)
            answers.append(dict(conv=dict(out=conv["out"], kernel=conv["kernel"], padding=conv["padding"]),
                                merge=conv["merge"], output_blocks=conv["output_blocks"], weights=weights,
                                useful=list(useful.values()), result=want))
        return dict(name=self.name, degree=self.n, bundles=self.bundles, shape=self.shape, layout=self.layout,
                    tensor=tensor, slots=slots, answers=answers)

    def plain(self, conv, weights, tensor):
        (kh, kw), (top, left), (c_in, h, w) = conv["kernel"], conv["padding"][:2], self.shape
        out = []
        for b in range(self.bundles):
            for o in range(conv["out"]):
                for y in range(conv["size"][0]):
                    for x in range(conv["size"][1]):
                        total = 0
                        for c in range(c_in):
                            for k in range(kh):
                                for l in range(kw):
                                    i, j = y * self.sh + k - top, x * self.sw + l - left
                                    if 0 <= i < h and 0 <= j < w:
                                        total += (weights[((o * c_in + c) * kh + k) * kw + l]
                                                  * tensor[((b * c_in + c) * h + i) * w + j])
                        out.append(total % P)
        return out


def layout(group, stride, padding, window, tile, row_stride, block, blocks):
    return dict(group=group, stride=stride, padding=padding, window=window, tile=tile, row_stride=row_stride,
                block=block, blocks=blocks)


def conv(out, kernel, padding, merge=0, output_blocks=1):
    return dict(out=out, kernel=kernel, padding=padding, merge=merge, output_blocks=output_blocks)


SAME, NONE = [1, 1, 1, 1], [0, 0, 0, 0]
CASES = [
    # One column of zeros serves both neighbours: row stride 4 for a padded width of 5.
    Case("shared padding", 128, 1, [3, 3, 3], layout(4, [1, 1], SAME, [3, 3], [3, 3], 4, 21, 1),
         [conv(5, [3, 3], SAME, merge=2)]),
    # Tiles of 2 x 3 of a 4 x 5 map: halos, two blocks in a ciphertext, tiles cut at the edge.
    Case("tiles with halo", 128, 1, [2, 4, 5], layout(2, [1, 1], SAME, [3, 3], [2, 3], 5, 20, 2),
         [conv(3, [3, 3], SAME, merge=1)]),
    # A strided 1x1 shortcut is the middle tap of the 3x3 kernel beside it.
    Case("stride 2 and its shortcut", 128, 1, [2, 4, 4], layout(8, [2, 2], [1, 1, 0, 0], [2, 2], [2, 2], 3, 9, 1),
         [conv(3, [3, 3], SAME, merge=1), conv(3, [1, 1], NONE, merge=3)]),
    Case("two bundles", 128, 2, [3, 2, 2], layout(2, [1, 1], SAME, [3, 3], [2, 2], 3, 13, 4),
         [conv(2, [3, 3], SAME, merge=1)]),
    Case("output blocks", 128, 1, [3, 2, 2], layout(2, [1, 1], SAME, [3, 3], [2, 2], 3, 13, 1),
         [conv(7, [3, 3], SAME, merge=1, output_blocks=4)]),
    Case("dense", 64, 1, [5, 2, 3], layout(8, [1, 1], NONE, [2, 3], [1, 1], 3, 6, 1),
         [conv(10, [2, 3], NONE, merge=3)]),
    Case("odd and even", 256, 1, [2, 5, 3], layout(2, [3, 1], [1, 2, 1, 1], [1, 4], [2, 3], 6, 16, 2),
         [conv(3, [2, 4], [1, 2, 1, 1], merge=0)]),
]

if __name__ == "__main__":
    vectors = dict(p=P, slot="-1 unused, -2 zero, 2 e free, 2 e + 1 repeat", cases=[case.run() for case in CASES])
    path = pathlib.Path(__file__).with_name("packing.json")
    path.write_text(json.dumps(vectors, separators=(",", ":")) + "\n")
    print(path.name, path.stat().st_size, "bytes,", len(CASES), "cases")
