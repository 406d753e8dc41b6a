// Questions to the pack's routes on the server.

import { api } from "../../scripts/api.js"

const answers = new Map() // question -> promise of its answer

/** The answer to GET /wan/`question` with the values `given`, remembered; null where there is none. */
export function ask(question, given) {
    const query = `/wan/${question}?${new URLSearchParams(given)}`
    if (!answers.has(query)) answers.set(query, fetchAnswer(query))
    return answers.get(query)
}

/** The answer to POST /wan/`question` with the values `given` and a body; null where there is none. */
export async function send(question, given, body) {
    const reply = await api.fetchApi(`/wan/${question}?${new URLSearchParams(given)}`, { method: "POST", body }).catch(() => null)
    return reply?.ok ? reply.json() : null
}

/** Ask anew from now on: files may have changed, and what is known of times and free memory. */
export function forget() {
    answers.clear()
}

async function fetchAnswer(query) {
    const reply = await api.fetchApi(query).catch(() => null)
    return reply?.ok ? reply.json() : null
}
