//! From the configuration's words to those of the actors.

use comfyd_actors::system::{SessionSettings, Settings, UploadSettings};

use crate::config::Config;

pub(super) fn settings(config: &Config, unclean_start: bool) -> Settings {
    let (comfyui, tasks) = (&config.comfyui, &config.tasks);
    Settings {
        unclean_start,
        validate: comfyui.validate,
        ordering: config.queue.ordering,
        max_pending: config.queue.max_pending,
        tenants: config.tenants.limits.clone(),
        prepare_ahead: config.queue.prepare_ahead,
        lease: config.queue.lease,
        renew_every: config.queue.renew_every,
        max_attempts: tasks.max_attempts,
        timeout: tasks.timeout,
        retry: tasks.retry,
        session: SessionSettings {
            client_prefix: comfyui.client_id.clone(),
            reconnect: comfyui.reconnect,
            post_timeout: comfyui.post_timeout,
            validate_grace: comfyui.validate_grace,
            silence: comfyui.silence,
            deaf_after: comfyui.deaf_after,
            backend_lost_after: comfyui.backend_lost_after,
            stop_grace: comfyui.stop_grace,
            free_wait: comfyui.free_wait,
            quiet_after: config.health.quiet_after,
            no_progress_timeout: config.health.no_progress_timeout,
            health: config.health.limits,
            nodes_refresh: comfyui.nodes_refresh,
            nodes_recheck: comfyui.nodes_recheck,
            previews: comfyui.previews,
        },
        uploads: UploadSettings {
            largest: tasks.max_output,
            parallel: tasks.upload_parallel,
            max_tasks: tasks.upload_max_waiting,
            attempts: tasks.upload_attempts,
            backoff: tasks.upload_retry,
            patience: tasks.upload_patience,
        },
        webhooks: config.webhooks.settings.clone(),
        retention: config.retention,
        leftovers: config.leftovers,
        restarts: config.supervision.limits,
        quarantine: config.supervision.quarantine,
        drain: config.server.drain_grace,
    }
}
