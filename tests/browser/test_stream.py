"""An endless video in its node: run, watched, stopped, played."""

import re

from playwright.sync_api import expect

from devtools.editor import RUN_BUTTON

WATCH = """() => {
    window.seen = []
    const { api } = window.comfyAPI.api
    api.addEventListener("wan.video", ({ detail }) => seen.push({ ...detail, ended: ended.length }))
}"""
PLAYS = """(seconds) => {
    const video = document.querySelector(".wan-video video")
    return video?.offsetParent && video.currentTime > seconds && video.videoWidth ? video : null
}"""
FILE = """() => [...document.querySelectorAll("video")].find(
    (video) => video.offsetParent && video.src.includes(seen[0].filename) && video.src.includes("/view?")
) ?? null"""


def test_run_watch_stop_play(open_workflow, editor, page):
    """It plays while it grows; after Cancel the whole file is there, with its length and index."""
    open_workflow("wan21_endless_video", seconds=0, seed=3)
    page.evaluate(WATCH)
    with page.expect_response("**/prompt"):
        page.locator(RUN_BUTTON).first.click()
    page.wait_for_function(PLAYS, arg=0.5)
    assert page.evaluate("ended.length") == 0, "it was to play before it is finished"
    expect(page.locator(".wan-video")).to_contain_text(re.compile(r"^0:\d\d on disk"))
    written = page.evaluate("seen.at(-1).seconds")
    page.wait_for_function(PLAYS, arg=written + 0.1)  # what was not there yet, too
    assert page.evaluate("ended.length") == 0
    page.evaluate("comfyAPI.api.api.interrupt()")
    page.wait_for_function("ended.length > 0")
    assert page.evaluate("ended[0].name") == "execution_success"
    assert page.evaluate("seen.at(-1).finished")
    video = page.wait_for_function(FILE).as_element()
    page.wait_for_function("(video) => video.readyState > 1", arg=video)
    assert abs(video.evaluate("(video) => video.duration") - page.evaluate("seen.at(-1).seconds")) < 0.1
    editor.play(video)
    page.wait_for_function("(video) => video.currentTime > 0.2", arg=video)
