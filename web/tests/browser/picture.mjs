// A picture as a BMP file: a sky, a sea and something on it, that no network has seen.

/** The bytes of a file of `width` by `height` pixels; `width` is a multiple of four. */
export function picture(width, height, shade = ship) {
  const header = new DataView(new ArrayBuffer(54));
  header.setUint16(0, 0x424d);
  header.setUint32(2, 54 + 3 * width * height, true);
  header.setUint32(10, 54, true);
  header.setUint32(14, 40, true);
  header.setInt32(18, width, true);
  header.setInt32(22, height, true);
  header.setUint16(26, 1, true);
  header.setUint16(28, 24, true);
  const bytes = new Uint8Array(54 + 3 * width * height);
  bytes.set(new Uint8Array(header.buffer));
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const [red, green, blue] = shade(x / width, y / height);
      bytes.set([blue, green, red], 54 + 3 * ((height - 1 - y) * width + x));
    }
  }
  return bytes;
}

/** A ship with two funnels under a sky that clears towards the horizon. */
export function ship(x, y) {
  const ripple = 9 * Math.sin(60 * y + 25 * x);
  const hull = y > 0.52 && y < 0.68 && x > 0.14 + 0.6 * (y - 0.52) && x < 0.9 - 0.5 * (y - 0.52);
  const house = y > 0.4 && y <= 0.52 && x > 0.3 && x < 0.72;
  const funnel = y > 0.24 && y <= 0.4 && ((x > 0.38 && x < 0.45) || (x > 0.54 && x < 0.61));
  if (hull) return y > 0.63 ? [128, 42, 38] : [38, 44, 58];
  if (house) return (x * 40) % 2 < 1 && y > 0.44 && y < 0.48 ? [70, 90, 110] : [232, 230, 222];
  if (funnel) return y < 0.29 ? [30, 30, 34] : [190, 70, 40];
  if (y > 0.62) return [36 + ripple, 84 + ripple, 120 + ripple].map(Math.round);
  return [150 + 90 * y, 190 + 60 * y, 232 + 10 * y].map(Math.round);
}

/** Squares of black and white, of `size` pixels in a picture of 32: unlike any photograph. */
export function checkerboard(size) {
  return (x, y) => {
    const white = (Math.floor((32 * x) / size) + Math.floor((32 * y) / size)) % 2;
    return [255 * white, 255 * white, 255 * white];
  };
}
