// Contrast of every pair of colours, text on background.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const light = (colour) => {
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
  const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const ground = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
  return "white";
};
const found = {};
for (const element of document.querySelectorAll("p, th, td, dd, dt, a, b, code, summary, button, span, svg text")) {
  const style = getComputedStyle(element);
  const colour = element.closest("svg") ? style.fill : style.color;
  const [dark, bright] = [light(colour), light(ground(element))].sort((x, y) => x - y);
  found[`${colour} on ${ground(element)}`] = (bright + 0.05) / (dark + 0.05);
}
return found;
