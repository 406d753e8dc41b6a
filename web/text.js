// Every word that the extension shows, by language, with {0} and the like for values. The server speaks English: its
// sentences are translated by their form.

import { app } from "../../scripts/app.js"

const WORDS = {
    en: {
        step: "Step {0} of {1}",
        pace: "{0} s a step",
        left: "{0} left",
        size: "{0} x {1}",
        snapped: "{0} x {1}, snapped to multiples of {2}",
        length: "{0} frames = {1} latent = {2} s at {3} fps",
        presets: "Size presets",
        preset: "{0}: {1} x {2}",
        "480p": "480p",
        "480p portrait": "480p portrait",
        "480p square": "480p square",
        "720p": "720p",
        "720p portrait": "720p portrait",
        "720p square": "720p square",
        "480p image": "480p in the shape of start_image",
        "720p image": "720p in the shape of start_image",
        dit: "{0} · {1} · {2} · {3} GiB",
        part: "{0} · {1} · {2} GiB",
        needs: "Needs {0}, {1}",
        clip: "{0} fps, sides in multiples of {1}",
        memory: "{0}: {1} of {2} GiB",
        tiles: "decoded in {0} tiles",
        offloaded: "{0} GiB of weights offloaded",
        ram: "RAM: {0} of {1} GiB",
        time: "about {0}",
        tight: "May not fit: choose a smaller size or length, or an fp8 or GGUF file.",
    },
    zh: {
        step: "第 {0} 步，共 {1} 步",
        pace: "每步 {0} 秒",
        left: "剩余 {0}",
        size: "{0} x {1}",
        snapped: "{0} x {1}，已对齐到 {2} 的倍数",
        length: "{0} 帧 = {1} 潜帧 = {2} 秒（{3} fps）",
        presets: "尺寸预设",
        preset: "{0}：{1} x {2}",
        "480p": "480p",
        "480p portrait": "480p 竖屏",
        "480p square": "480p 方形",
        "720p": "720p",
        "720p portrait": "720p 竖屏",
        "720p square": "720p 方形",
        "480p image": "480p，按 start_image 的宽高比",
        "720p image": "720p，按 start_image 的宽高比",
        dit: "{0} · {1} · {2} · {3} GiB",
        part: "{0} · {1} · {2} GiB",
        needs: "需要 {0}、{1}",
        clip: "{0} fps，边长为 {1} 的倍数",
        memory: "{0}：{1} / {2} GiB",
        tiles: "分 {0} 块解码",
        offloaded: "{0} GiB 权重被卸载",
        ram: "内存：{0} / {1} GiB",
        time: "约 {0}",
        tight: "可能放不下：请减小尺寸或帧数，或改用 fp8 或 GGUF 文件。",
    },
}

const SENTENCES = {
    zh: [
        ["{0}-channel latents ({1})", "{0} 通道潜变量（{1}）"],
        [
            "The model samples {0} and was given {1}: connect the VAE of the model's family to the node that made the latent.",
            "模型采样的是 {0}，收到的却是 {1}：请把与模型同系列的 VAE 连接到生成该潜变量的节点。",
        ],
        [
            "The VAE decodes {0} and was given {1}: load the VAE of the model's family in WanVAELoader.",
            "VAE 解码的是 {0}，收到的却是 {1}：请在 WanVAELoader 中加载与模型同系列的 VAE。",
        ],
        [
            "WanVACE works on {0} and the VAE makes {1}: load wan_2.1_vae in WanVAELoader.",
            "WanVACE 使用 {0}，而该 VAE 生成 {1}：请在 WanVAELoader 中加载 wan_2.1_vae。",
        ],
        [
            "WanConditioning has an end_image and the VAE of Wan 2.2 5B, a model that holds first frames only: disconnect end_image, or use an A14B or 2.1 image-to-video model with its VAE.",
            "WanConditioning 连接了 end_image，而 VAE 属于只保留首帧的 Wan 2.2 5B：请断开 end_image，或改用 A14B 或 2.1 图生视频模型及其 VAE。",
        ],
        [
            "The experts are no pair: {0} takes {1} channels and {2} {3} (16 is text to video, 36 image to video): load both files of the same model.",
            "两个专家不成对：{0} 接受 {1} 个通道，{2} 接受 {3} 个（16 为文生视频，36 为图生视频）：请加载同一模型的两个文件。",
        ],
        [
            "{0} is connected to {1} of WanSampler, where the other expert belongs: connect the high-noise file to model and the low-noise file to low_noise_model.",
            "{0} 连接到了 WanSampler 的 {1}，那里应接另一个专家：请把高噪声文件接到 model，低噪声文件接到 low_noise_model。",
        ],
        [
            "'{0}' is for a Wan model of {1}, this one has {2}: choose a LoRA made for this size.",
            "“{0}”适用于 {1} 的 Wan 模型，而此模型为 {2}：请选择适合此尺寸的 LoRA。",
        ],
        [
            "'{0}' has no key of this Wan model (its first is {1}): choose a LoRA made for Wan.",
            "“{0}”中没有此 Wan 模型的键（第一个是 {1}）：请选择为 Wan 制作的 LoRA。",
        ],
        [
            "'{0}' changes {1} of {2} x {3}, this model's is {4}: choose another LoRA.",
            "“{0}”修改的 {1} 为 {2} x {3}，而此模型的是 {4}：请选择其他 LoRA。",
        ],
        [
            "Wan reads the text encoder umT5 and this CLIP is another one: load umT5-XXL in WanTextEncoderLoader, or in CLIPLoader with type wan.",
            "Wan 使用文本编码器 umT5，而此 CLIP 不是：请在 WanTextEncoderLoader 中加载 umT5-XXL，或在 CLIPLoader 中选择类型 wan。",
        ],
        ["{0} holds {1}, not {2}: choose {3} in {4}.", "{0} 的内容是 {1}，而不是 {2}：请在 {4} 中另选文件。"],
    ],
}

/** The language of the editor, as far as there are words in it. */
export function language() {
    const locale = app.extensionManager.setting.get("Comfy.Locale") ?? "en"
    return locale.split("-")[0] in WORDS ? locale.split("-")[0] : "en"
}

/** The words under `key` in the editor's language, with `values` in their places. */
export function say(key, ...values) {
    return fill(WORDS[language()][key], values)
}

/** A sentence of the server in the editor's language, as far as it is known there. */
export function translate(sentence) {
    for (const [form, translation] of SENTENCES[language()] ?? []) {
        const found = pattern(form).exec(sentence)
        if (found) return fill(translation, found.slice(1).map(translate))
    }
    return sentence
}

/** Seconds as people read them: 3725 -> "1:02:05". */
export function clockTime(seconds) {
    const whole = Math.round(seconds)
    const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"))
    const hours = Math.floor(whole / 3600)
    return hours ? `${hours}:${parts.join(":")}` : parts.join(":").replace(/^0/, "")
}

function fill(template, values) {
    return template.replace(/\{(\d+)\}/g, (_, index) => values[index])
}

/** "a {0} b" as the expression that finds what stands for {0}. */
function pattern(form) {
    const literal = form.replace(/[.*+?^$()|[\]\\]/g, "\\$&")
    return new RegExp(`^${literal.replace(/\{\d+\}/g, "(.+?)")}$`)
}
