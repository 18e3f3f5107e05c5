// What viewer.py serves, shown by niivue. Names come from strangers: they are only ever set as text.
import { Niivue, SLICE_TYPE } from "./niivue.js"

const byId = (id) => document.getElementById(id)
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
  fontColor: [1, 1, 0.6, 1],
  backColor: [0.06, 0.07, 0.07, 1],
})
view.setSliceMM(true)
view.onLocationChange = ({ mm, values }) => {
  const [x, y, z] = [-mm[0], -mm[1], mm[2]].map((value) => value.toFixed(1)) // RAS to LPS
  byId("place").textContent = `x ${x}, y ${y}, z ${z} mm (LPS): ${Number(values[0].value).toFixed(0)}`
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
  byId("place").textContent = "click into a plane"
})
for (const layer of content.layers) {
  const [row, box] = ["label", "input"].map((name) => document.createElement(name))
  Object.assign(box, { type: "checkbox", checked: layer.is_shown })
  box.onchange = () => tried(() => (box.checked ? show(layer) : hide(layer)))
  row.append(box)
  for (const colour of Object.values(layer.colours)) {
    const swatch = document.createElement("span")
    swatch.className = "swatch"
    swatch.style.background = `rgb(${colour})`
    row.append(swatch)
  }
  row.append(layer.title)
  byId("layers").append(row)
  if (layer.is_shown) await tried(() => show(layer))
}
document.body.dataset.state = "ready"
window.view = view // for the tests, and for the curious
