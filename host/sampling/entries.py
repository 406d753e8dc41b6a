"""The entries that the host's nodes put into a CONDITIONING, and which of them a model reads."""

NAMES = {  # entry -> what it is, for a person
    "concat_latent_image": "a start image",
    "clip_vision_output": "CLIP vision of the start image",
    "vace_frames": "VACE frames",
    "time_dim_concat": "subject pictures (Phantom)",
    "reference_latents": "a reference picture",
    "reference_latent": "a reference picture",
    "context_latents": "clips or pictures to edit (Bernini)",
    "audio_embed": "sound",
    "camera_conditions": "a camera path",
    "control_video": "a control video",
    "reference_motion": "the frames of the clip before (S2V)",
    "pose_video_latent": "a pose video",
    "pose_latents": "a pose video",
    "face_video_pixels": "a face video",
    "clip_vision_output_pose": "CLIP vision of the pose video",
    "clip_vision_output_ref": "CLIP vision of the reference picture",
    "cross_attn_pose": "a prompt for the pose video",
    "driving_mask_28ch": "masks of the driving video (SCAIL-2)",
    "ref_mask_28ch": "masks of the reference picture (SCAIL-2)",
}


def given(conditioning) -> dict[str, object]:
    """Return the entries of `NAMES` in a CONDITIONING, each with the value of the first prompt that has it."""
    found = {}
    for _, options in conditioning:
        for name in NAMES.keys() & options.keys():
            if options[name] is not None:
                found.setdefault(name, options[name])
    return found


def reads(model) -> frozenset[str]:
    """Return the entries that a MODEL of this pack reads: what its class says in `reads`, else what its sizes tell."""
    declared = getattr(model.model, "reads", None)
    if declared is not None:
        return frozenset(declared)
    config = model.model.diffusion_model.config
    by_config = {
        "time_dim_concat": True,
        "concat_latent_image": config.in_dim > config.out_dim,
        "clip_vision_output": config.image_tokens > 0,
        "vace_frames": bool(config.vace_layers),
    }
    return frozenset(name for name, is_read in by_config.items() if is_read)


def unread_entries(model, conditioning) -> dict[str, str]:
    """Return the entries of `conditioning` that `model` does not read, with words for each, in the order of `NAMES`."""
    unread = given(conditioning).keys() - reads(model)
    return {name: words for name, words in NAMES.items() if name in unread}
