"""The entries that the host's nodes put into a CONDITIONING, and which of them a model reads."""

ENTRIES = {  # entry -> what it is, for a person, and the conditions of the network that it can become
    "concat_latent_image": ("a start image", "y"),
    "clip_vision_output": ("CLIP vision of the start image", "clip_fea"),
    "vace_frames": ("VACE frames", "vace_context"),
    "time_dim_concat": ("subject pictures (Phantom)", "subject_latents"),
    "reference_latents": ("a reference picture", "ref_latent", "ref_latents"),
    "reference_latent": ("a reference picture", "ref_latent"),
    "context_latents": ("clips or pictures to edit (Bernini)", "context_latents"),
    "audio_embed": ("sound", "audio"),
    "camera_conditions": ("a camera path", "camera"),
    "control_video": ("a control video", "pose_latents"),
    "reference_motion": ("the frames of the clip before (S2V)", "motion_latents"),
    "pose_video_latent": ("a pose video", "pose_latents"),
    "pose_latents": ("a pose video", "pose_latents"),
    "face_video_pixels": ("a face video", "face"),
    "clip_vision_output_pose": ("CLIP vision of the pose video", "clip_fea_pose"),
    "clip_vision_output_ref": ("CLIP vision of the reference picture", "clip_fea_ref"),
    "cross_attn_pose": ("a prompt for the pose video", "context_pose"),
    "driving_mask_28ch": ("masks of the driving video (SCAIL-2)", "pose_masks"),
    "ref_mask_28ch": ("masks of the reference picture (SCAIL-2)", "ref_masks"),
}


def given(conditioning) -> dict[str, object]:
    """Return the entries of `ENTRIES` in a CONDITIONING, each with the value of the first prompt that has it."""
    found = {}
    for _, options in conditioning:
        for name in ENTRIES.keys() & options.keys():
            if options[name] is not None:
                found.setdefault(name, options[name])
    return found


def reads(model) -> frozenset[str]:
    """Return the entries that a MODEL of this pack reads."""
    network = model.model.diffusion_model
    conditions = network.reads | ({"y"} if network.config.facts.takes_image else set())
    return frozenset(entry for entry, (_, *names) in ENTRIES.items() if conditions.intersection(names))


def unread_entries(model, conditioning) -> dict[str, str]:
    """Return the entries of `conditioning` that `model` does not read, with words for each, in a fixed order."""
    unread = given(conditioning).keys() - reads(model)
    return {name: words for name, (words, *_) in ENTRIES.items() if name in unread}
