// What viewer.py serves, shown by niivue. Names come from strangers: they are only ever set as text.
import { Niivue, SLICE_TYPE } from "./niivue.js"

const byId = (id) => document.getElementById(id)
const element = (name, properties) => Object.assign(document.createElement(name), properties)
const content = JSON.parse(byId("content").textContent)
const shown = new Map() // from the path of a layer to its niivue volume

// as radiologists look at it: the patient's left is on the right
const view = new Niivue({
  isRadiologicalConvention: true,
  sagittalNoseLeft: true,
  isOrientationTextVisible: true,
  dragAndDropEnabled: false,
  show3Dcrosshair: true,
  crosshairWidth: 0.5,
  backColor: [0.06, 0.07, 0.07, 1],
})
view.setSliceMM(true)
view.onLocationChange = ({ mm, values }) => {
  const [x, y, z] = [-mm[0], -mm[1], mm[2]].map((value) => value.toFixed(1)) // RAS to LPS
  byId("place").textContent = `x ${x}, y ${y}, z ${z} mm (LPS): ${Number(values[0].value.toFixed(3))} ${content.unit}`
}

function goTo([x, y, z]) {
  const within = (part) => Math.min(Math.max(part, 0), 1) // a label's middle can lie outside of the image
  view.scene.crosshairPos = view.mm2frac([-x, -y, z]).map(within) // LPS to RAS
  view.createOnLocationChange()
  view.drawScene()
}

// the letters of dskprep's pictures, on any ground: niivue writes two of four, without a rim, and S and I for H and F
const letters = { [SLICE_TYPE.AXIAL]: "RLAP", [SLICE_TYPE.CORONAL]: "RLHF", [SLICE_TYPE.SAGITTAL]: "APHF" }
view.drawSliceOrientationText = ([left, top, width, height], plane) => {
  view.gl.viewport(0, 0, view.gl.canvas.width, view.gl.canvas.height)
  const [size, rim] = [view.fontPx, view.fontPx / 10]
  const [middle, centre] = [left + (width - size / 2) / 2, top + (height - size) / 2]
  const places = [[left + 2 * rim, centre], [left + width - size, centre], [middle, top], [middle, top + height - 1.3 * size]]
  places.forEach(([x, y], n) => {
    const letter = letters[plane][n]
    for (const across of [-rim, 0, rim]) {
      for (const down of [-rim, 0, rim]) view.drawText([x + across, y + down], letter, 1, [0, 0, 0, 1])
    }
    view.drawText([x, y], letter, 1, [1, 1, 1, 1])
  })
}

async function fetched(path) {
  const answer = await fetch(path)
  if (!answer.ok) throw new Error(await answer.text())
  return { url: URL.createObjectURL(await answer.blob()), name: path }
}

async function show(layer) {
  const volume = await view.addVolumeFromUrl({ ...(await fetched(layer.path)), opacity: Number(byId("opacity").value) })
  const values = [0, ...Object.keys(layer.colours).map(Number)]
  const channel = (n) => values.map((value) => (value ? layer.colours[value][n] : 0))
  const [R, G, B] = [0, 1, 2].map(channel)
  volume.setColormapLabel({ R, G, B, A: values.map((value) => (value ? 255 : 0)), I: values, labels: values.map(String) })
  shown.set(layer.path, volume)
  view.updateGLVolume()
}

function hide(layer) {
  view.removeVolume(shown.get(layer.path))
  shown.delete(layer.path)
}

async function tried(work) {
  try {
    await work()
  } catch (error) {
    byId("problem").textContent = error.message
  }
}

function choice(id, options, choose) {
  for (const name of Object.keys(options)) byId(id).add(new Option(name))
  byId(id).hidden = Object.keys(options).length === 0
  byId(id).onchange = () => choose(options[byId(id).value])
}

choice("window", Object.fromEntries(content.windows), ([low, high]) => {
  view.volumes[0].cal_min = low
  view.volumes[0].cal_max = high
  view.updateGLVolume()
})
const planes = {
  "all planes": SLICE_TYPE.MULTIPLANAR,
  axial: SLICE_TYPE.AXIAL,
  coronal: SLICE_TYPE.CORONAL,
  sagittal: SLICE_TYPE.SAGITTAL,
  "3-D": SLICE_TYPE.RENDER,
}
choice("planes", planes, (type) => view.setSliceType(type))
byId("opacity").oninput = () => {
  for (const volume of shown.values()) view.setOpacity(view.volumes.indexOf(volume), Number(byId("opacity").value))
}

await tried(async () => {
  await view.attachTo("canvas")
  const [low, high] = content.windows[0]?.[1] ?? []
  await view.loadVolumes([{ ...(await fetched("image.nii")), colormap: "gray", cal_min: low, cal_max: high }])
  const start = content.layers.find((layer) => layer.middle_mm)
  if (start) goTo(start.middle_mm)
})
const waiting = [] // for labels that are to be shown: what loads them
for (const layer of content.layers) {
  const row = element("div", { className: "layer" })
  const box = element("input", { type: "checkbox", checked: layer.is_shown, ariaLabel: layer.title })
  box.disabled = layer.is_shown // until it is loaded
  box.onchange = () => tried(() => (box.checked ? show(layer) : hide(layer)))
  const tick = element("label")
  tick.append(box)
  for (const colour of Object.values(layer.colours)) {
    const swatch = element("span", { className: "swatch" })
    swatch.style.background = `rgb(${colour})`
    tick.append(swatch)
  }
  row.append(tick)
  if (layer.middle_mm) {
    const name = element("button", { textContent: layer.title, title: "go to its middle" })
    name.onclick = () => {
      if (!box.checked) box.click()
      goTo(layer.middle_mm)
    }
    row.append(name)
  } else {
    tick.append(layer.title)
  }
  byId("layers").append(row)
  if (layer.is_shown) waiting.push(() => show(layer).finally(() => (box.disabled = false)))
}
for (const [n, load] of waiting.entries()) {
  byId("loading").textContent = `loading label ${n + 1} of ${waiting.length}`
  await tried(load)
}
byId("loading").textContent = ""
document.body.dataset.state = "ready"
window.view = view // for the tests, and for the curious
