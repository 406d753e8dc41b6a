"""The pack's own route on a running server."""


def test_the_server_says_what_a_file_is(client):
    answer = client.get("/wan/info?folder=vae&name=tiny_random_wan2.1_vae.safetensors")
    assert (answer["variant"], answer["layout"]) == ("vae21", "official")
